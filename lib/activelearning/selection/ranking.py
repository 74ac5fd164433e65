"""What every strategy shares: who can be ranked, who is the first of them, and the draw where nobody can."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lib.activelearning.pool import Choice, ImageScore, OrganScore, Pool
from lib.imaging.quantities import FloatArray

LEAD_ORGANS = 3
"""So many organs are named as the reason for a choice."""
NO_SCORES = "no scores yet: drawn at random"


def in_order(pool: Pool) -> list[str]:
    """Return the candidates, each once, in an order that does not depend on theirs."""
    return sorted(set(pool.candidates))


def scored(pool: Pool, value: Callable[[ImageScore], float | None]) -> tuple[list[str], FloatArray]:
    """Return the candidates that `value` says a finite number of, in a fixed order, and these numbers `(N,)`.

    A number that is not finite comes from a model that is broken: it must not come first for ever.
    """
    found = []
    for image_id in in_order(pool):
        score = pool.scores.get(image_id)
        number = value(score) if score is not None else None
        if number is not None and math.isfinite(number):
            found.append((image_id, number))
    return [image_id for image_id, _ in found], np.array([number for _, number in found], float)


def best(generator: np.random.Generator, *keys: FloatArray) -> int:
    """Return the index of the largest value in the first of `keys`, each `(N,)`.

    Of equal ones the next key decides, and in the end `generator`, each equally likely.
    """
    left = np.arange(len(keys[0]))
    for key in keys:
        left = left[key[left] == key[left].max()]
    return int(generator.choice(left))


def place(values: FloatArray, index: int) -> int:
    """Return how many of `values` are larger than the one at `index`, plus one."""
    return 1 + int((values > values[index]).sum())


def at_random(pool: Pool, why: str) -> Choice | None:
    """Return any candidate, each equally likely; None where there is none."""
    candidates = in_order(pool)
    if not candidates:
        return None
    image_id = candidates[int(pool.generator().integers(len(candidates)))]
    return Choice(image_id=image_id, of=0, why=why)


def shuffled_organs(scores: Sequence[ImageScore], generator: np.random.Generator) -> list[str]:
    """Return every organ of these scores once, each order equally likely."""
    organs = sorted(set[str]().union(*(score.organs for score in scores)))
    return [organs[k] for k in generator.permutation(len(organs))]


def leading(
    organs: Mapping[str, OrganScore], value: Callable[[OrganScore], float | None]
) -> tuple[str, ...]:
    """Return the organs with the largest values, the largest first; those with none are left out."""
    values = {name: value(organ) for name, organ in organs.items()}
    known = {name: number for name, number in values.items() if number is not None}
    return tuple(sorted(known, key=lambda name: (-known[name], name))[:LEAD_ORGANS])


def listed(names: Sequence[str]) -> str:
    """Return names as in a sentence: `A, B and C`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
