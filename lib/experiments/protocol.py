"""What a simulation is: everything that decides its numbers, written down before the first training.

Test and pool are the same for every strategy and seed. Of one seed, every strategy starts from the same random
labels and the same first model, and its trainings draw from the same random numbers: strategies are compared in
pairs.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lib.errors import ConfigError, StateError
from lib.recipes.schema import Recipe
from lib.storage.atomic_files import finite, write_json
from lib.training.cases import Case

FILE = "protocol.json"
Start = Literal["scratch", "previous"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Everything that decides the numbers.

    Attributes:
        strategies: Names of `lib.activelearning.selection.catalogue.METHODS`.
        seeds: How many; they are 0, 1, 2 and so on.
        budgets: Labels after each round; the first are drawn at random.
        pool: Image id -> digest of scan and label, of the cases that can be asked for.
        test: Likewise, of the cases that judge.
        recipe: What is trained.
        start: Where a training starts: `scratch`, or the weights of the round before.
        device: Where the network runs.
    """

    strategies: tuple[str, ...]
    seeds: int
    budgets: tuple[int, ...]
    pool: Mapping[str, str]
    test: Mapping[str, str]
    recipe: Recipe
    start: Start
    device: str

    def __post_init__(self) -> None:
        if not self.strategies or len(set(self.strategies)) < len(self.strategies):
            raise ConfigError(
                f"strategies: name one or more, each once, not {list(self.strategies)}"
            )
        if self.seeds < 1:
            raise ConfigError(f"seeds: at least 1 is needed, not {self.seeds}")
        steps = np.diff((0, *self.budgets))
        if len(self.budgets) < 2 or int(steps.min()) < 1:
            raise ConfigError(
                f"budgets: two or more rising numbers of labels, not {list(self.budgets)}"
            )
        if self.budgets[-1] > len(self.pool):
            raise ConfigError(
                f"budgets: {self.budgets[-1]} labels are more than the pool of {len(self.pool)} has"
            )
        if not self.test or self.test.keys() & self.pool.keys():
            raise ConfigError(
                "test: one or more cases are needed, none of which is in the pool; found "
                f"{len(self.test)}, {len(self.test.keys() & self.pool.keys())} of them in both"
            )

    @property
    def rounds(self) -> int:
        """How many rounds follow the random start."""
        return len(self.budgets) - 1

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, as JSON gives them back."""
        values = {name: getattr(self, name) for name in self.__slots__}
        plain: dict[str, Any] = json.loads(
            json.dumps(finite({**values, "recipe": self.recipe.as_dict()}))
        )
        return plain


def write_protocol(folder: Path, protocol: Protocol) -> None:
    """Write the protocol into `folder`, or see that it is the one that is there.

    Raises:
        ConfigError: If another one is there.
        StateError: If what is there cannot be read.
    """
    path, asked = folder / FILE, protocol.as_dict()
    if not path.exists():
        write_json(path, asked)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(k for k in {*found, *asked} if found.get(k) != asked.get(k))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StateError(
            f"{path}: cannot be read ({error}); put it back, or begin anew in another folder"
        ) from error
    if differing:
        told = "; ".join(
            f"{name}: {_short(found.get(name), asked.get(name))}" for name in differing
        )
        raise ConfigError(
            f"{folder} holds a simulation of other options ({told}); give the same options to go on "
            "with it, or another folder"
        )


def _short(found: object, asked: object) -> str:
    """Return what differs between two values, in a few words."""
    if isinstance(found, dict) and isinstance(asked, dict):
        keys = sorted(k for k in {*found, *asked} if found.get(k) != asked.get(k))
        told = ", ".join(f"{k} {_short(found.get(k), asked.get(k))}" for k in keys[:3])
        return told + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return f"there {json.dumps(found)[:80]}, asked for {json.dumps(asked)[:80]}"


def divided(
    cases: Sequence[Case],
    *,
    pool: int,
    test: int,
    listed_pool: Collection[str] | None = None,
    listed_test: Collection[str] | None = None,
) -> tuple[list[Case], list[Case]]:
    """Return pool and test: those listed, or the first in the order of their ids' hashes, test first.

    Raises:
        ConfigError: If there are too few cases, or a listed one is not there.
    """
    named = {case.image_id: case for case in cases}
    for ids in (listed_pool or (), listed_test or ()):
        if missing := sorted(set(ids) - named.keys()):
            raise ConfigError(f"no labelled case is called {', '.join(missing[:5])}")
    ordered = sorted(named, key=lambda name: (hashlib.sha256(name.encode()).hexdigest(), name))
    free = [name for name in ordered if name not in (listed_pool or ())]
    chosen_test = sorted(listed_test if listed_test is not None else free[:test])
    free = [name for name in ordered if name not in chosen_test]
    chosen_pool = sorted(listed_pool if listed_pool is not None else free[:pool])
    for name, found, wanted in (
        ("test", chosen_test, test if listed_test is None else 0),
        ("pool", chosen_pool, pool if listed_pool is None else 0),
    ):
        if len(found) < wanted:
            raise ConfigError(
                f"{name}: {wanted} cases are asked for, {len(found)} of {len(cases)} are left for it"
            )
    return [named[name] for name in chosen_pool], [named[name] for name in chosen_test]


def read_ids(path: Path) -> list[str]:
    """Return the image ids that a text file lists, one a line; `#` begins a remark.

    Raises:
        ConfigError: If it cannot be read, lists none, or one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the list of cases cannot be read ({error})") from error
    ids = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not ids or len(set(ids)) < len(ids):
        raise ConfigError(f"{path}: one image id a line is expected, each once; found {len(ids)}")
    return ids


def first_draw(pool: Collection[str], count: int, *, seed: int) -> list[str]:
    """Return the labels that every strategy of this seed starts from, each equally likely."""
    rng = np.random.default_rng((seed, 0))
    return [str(name) for name in rng.choice(sorted(pool), count, replace=False)]


def derived_seed(*numbers: int) -> int:
    """Return a seed that follows from `numbers`, and from no other numbers but by a rare chance."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)
