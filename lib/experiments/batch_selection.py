"""Several labels in one round: the same question again and again, as annotators would ask it."""

from collections.abc import Callable
from dataclasses import replace

from lib.activelearning.pool import Choice, Pool
from lib.activelearning.selection.catalogue import Method
from lib.errors import ConfigError


def picked(
    method: Method, pool: Pool, count: int, *, seed_of: Callable[[int], int]
) -> list[Choice]:
    """Return `count` choices; what was chosen is `taken` for the next one, its label is not known yet.

    Args:
        method: The strategy.
        pool: What it may look at, its seed aside.
        count: How many.
        seed_of: Number of the choice, from 0 -> seed.

    Raises:
        ConfigError: If the strategy chooses nothing, or what cannot be had.
    """
    choices: list[Choice] = []
    for number in range(count):
        names = [choice.image_id for choice in choices]
        left = [image_id for image_id in pool.candidates if image_id not in names]
        asked = replace(pool, candidates=left, taken=(*pool.taken, *names), seed=seed_of(number))
        choice = method.choose(asked)
        if choice is None or choice.image_id not in left:
            raise ConfigError(
                f"strategy {method.name!r}, choice {number + 1} of {count}: "
                f"{'nothing' if choice is None else choice.image_id!r} was chosen of {len(left)} candidates; "
                "a strategy chooses one of them as long as there is one"
            )
        choices.append(choice)
    return choices
