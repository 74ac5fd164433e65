"""Protocol of a simulation of active learning: all options that decide its results, and recipe presets.

Pool and test cases are the same for every strategy and seed. Within one seed, every strategy starts from the
same random labels and the same first model, and trainings use the same random numbers, so that strategies are
compared in pairs.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lib.errors import ConfigError, StateError
from lib.imaging.quantities import ShapeVox, SpacingMm
from lib.networks.build import check_network
from lib.recipes.schema import Recipe
from lib.storage.atomic_files import finite, write_json
from lib.training.cases import Case

FILE = "protocol.json"
STEPS_PER_EPOCH = 100
"""Largest number of optimiser steps between two checkpoints, and so lost by an interruption."""

Start = Literal["scratch", "previous"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """All options that decide the results."""

    strategies: tuple[str, ...]
    """Names of `lib.activelearning.selection.catalogue.METHODS`."""
    seeds: int
    """Number of seeds; they are 0, 1, 2 and so on."""
    budgets: tuple[int, ...]
    """Number of labels after each round; the first are drawn at random."""
    pool: Mapping[str, str]
    """Image id -> digest of scan and label, of the cases that a strategy can select."""
    test: Mapping[str, str]
    """Likewise, of the held-out test cases."""
    recipe: Recipe
    start: Start
    """Initial weights of each training: `scratch`, or those of the `previous` round."""
    device: str

    def __post_init__(self) -> None:
        if not self.strategies or len(set(self.strategies)) < len(self.strategies):
            raise ConfigError(
                f"strategies: one or more different names expected, found {list(self.strategies)}"
            )
        if self.seeds < 1:
            raise ConfigError(f"seeds: at least 1 expected, found {self.seeds}")
        steps = np.diff((0, *self.budgets))
        if len(self.budgets) < 2 or int(steps.min()) < 1:
            raise ConfigError(
                f"budgets: two or more increasing numbers of labels expected, found {list(self.budgets)}"
            )
        if self.budgets[-1] > len(self.pool):
            raise ConfigError(
                f"budgets: {self.budgets[-1]} labels are more than the {len(self.pool)} cases of the pool; "
                "lower the last budget or enlarge the pool"
            )
        if not self.test or self.test.keys() & self.pool.keys():
            raise ConfigError(
                "test: one or more cases outside the pool expected, found "
                f"{len(self.test)}, of which {len(self.test.keys() & self.pool.keys())} are in the pool"
            )

    @property
    def rounds(self) -> int:
        """Number of rounds after the random start."""
        return len(self.budgets) - 1

    def as_dict(self) -> dict[str, Any]:
        """Return the protocol as plain values, as they are read back from JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        plain: dict[str, Any] = json.loads(
            json.dumps(finite({**values, "recipe": self.recipe.as_dict()}))
        )
        return plain


def write_protocol(folder: Path, protocol: Protocol) -> None:
    """Write the protocol into `folder`, or check that the one stored there is the same.

    Raises:
        ConfigError: If a different protocol is stored there.
        StateError: If the stored protocol cannot be read.
    """
    path, requested = folder / FILE, protocol.as_dict()
    if not path.exists():
        write_json(path, requested)
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(k for k in {*stored, *requested} if stored.get(k) != requested.get(k))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StateError(
            f"{path}: cannot be read ({error}); restore it, or start again in another folder"
        ) from error
    if differing:
        differences = "; ".join(
            f"{name}: {_difference(stored.get(name), requested.get(name))}" for name in differing
        )
        raise ConfigError(
            f"{folder} holds a simulation with other options ({differences}); give the same options to "
            "continue it, or choose another folder"
        )


def _difference(stored: object, requested: object) -> str:
    """Return a short description of how two values differ."""
    if isinstance(stored, dict) and isinstance(requested, dict):
        keys = sorted(k for k in {*stored, *requested} if stored.get(k) != requested.get(k))
        first = ", ".join(f"{k} {_difference(stored.get(k), requested.get(k))}" for k in keys[:3])
        return first + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return f"stored {json.dumps(stored)[:80]}, requested {json.dumps(requested)[:80]}"


def split_cases(
    cases: Sequence[Case],
    *,
    pool: int,
    test: int,
    listed_pool: Collection[str] | None = None,
    listed_test: Collection[str] | None = None,
) -> tuple[list[Case], list[Case]]:
    """Return pool and test cases: the listed ones, else the first in the order of their ids' hashes.

    Test cases are taken first. The split depends on the ids alone, and a larger pool contains the smaller one.

    Raises:
        ConfigError: If there are too few cases, or a listed one does not exist.
    """
    by_id = {case.image_id: case for case in cases}
    for ids in (listed_pool or (), listed_test or ()):
        if missing := sorted(set(ids) - by_id.keys()):
            raise ConfigError(f"no labelled case is called {', '.join(missing[:5])}")
    ordered = sorted(by_id, key=lambda name: (hashlib.sha256(name.encode()).hexdigest(), name))
    available = [name for name in ordered if name not in (listed_pool or ())]
    test_ids = sorted(listed_test if listed_test is not None else available[:test])
    available = [name for name in ordered if name not in test_ids]
    pool_ids = sorted(listed_pool if listed_pool is not None else available[:pool])
    for name, ids, requested in (
        ("test", test_ids, test if listed_test is None else 0),
        ("pool", pool_ids, pool if listed_pool is None else 0),
    ):
        if len(ids) < requested:
            raise ConfigError(
                f"{name}: {requested} cases requested, but only {len(ids)} of {len(cases)} are available"
            )
    return [by_id[name] for name in pool_ids], [by_id[name] for name in test_ids]


def read_ids(path: Path) -> list[str]:
    """Return the image ids in a text file, one per line; `#` starts a comment.

    Raises:
        ConfigError: If the file cannot be read, is empty, or lists an id twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the list of cases cannot be read ({error})") from error
    ids = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not ids or len(set(ids)) < len(ids):
        raise ConfigError(
            f"{path}: different image ids expected, one per line; found {len(ids)} ids, {len(set(ids))} "
            "different"
        )
    return ids


def initial_labels(pool: Collection[str], count: int, *, seed: int) -> list[str]:
    """Return the random labels that every strategy of this seed starts from, each equally likely."""
    rng = np.random.default_rng((seed, 0))
    return [str(name) for name in rng.choice(sorted(pool), count, replace=False)]


def derived_seed(*numbers: int) -> int:
    """Return a seed computed from `numbers`; other numbers give another seed, apart from rare collisions."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Values that replace those of a recipe; None keeps the recipe's value."""

    spacing_mm: SpacingMm | None = None
    """Voxel size of the network's input; every CT is resampled to it, whatever the recipe's
    `spacing_tolerance`."""
    crop_vox: ShapeVox | None = None
    """Size of a training crop and of the sliding window."""
    width: int | None = None
    """Channels of the network's first level."""
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    """Learning rate at the start of the schedule."""
    ema_decay: float | None = None
    """Decay of the moving average of the weights."""

    def with_defaults(self, defaults: "Overrides") -> "Overrides":
        """Return these values, with those of `defaults` in place of None."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(defaults, **{name: v for name, v in own.items() if v is not None})


# Batches of one small crop: whether an organ is learned depends on the number of steps, not on the batch size.
# On 32 OpenKBP cases, 500 steps of one crop of 32 voxels a side (63 s of one core) found four of seven organs,
# 1,000 steps of 24 voxels (77 s) six, and 1,600 (125 s) all, with a mean DSC of 0.55; half the width found one
# in 1,000.
PRESETS: Mapping[str, Overrides] = {
    "full": Overrides(),
    "small": Overrides(
        spacing_mm=(6.0, 6.0, 6.0),
        crop_vox=(24, 24, 24),
        width=8,
        steps=1500,
        batch_size=1,
        learning_rate=4e-3,
        ema_decay=0.98,
    ),
}
"""Overrides by name of the preset.

`small` is made for two CPU cores. A round takes about three minutes of one core: two for training, 0.25
for 20 test cases, one for the scores of 60 cases (four times that for repeated predictions). The default
simulation takes about 90 minutes of both cores.
"""


def apply_overrides(recipe: Recipe, overrides: Overrides) -> Recipe:
    """Return `recipe` with `overrides`; the schedule keeps its shape over the new number of steps.

    Raises:
        ConfigError: If the changed recipe is not valid.
    """
    if overrides.steps is not None and overrides.steps < 1:
        raise ConfigError(f"steps: at least 1 step expected, found {overrides.steps}")
    network, schedule = recipe.network, recipe.schedule
    for name in ("batch_size", "learning_rate", "ema_decay"):
        if (value := getattr(overrides, name)) is not None:
            schedule = replace(schedule, **{name: value})
    if overrides.width is not None:
        network = replace(network, width=overrides.width)
    if overrides.steps is not None:
        epochs = _epochs(overrides.steps)
        schedule = replace(
            schedule,
            epochs=epochs,
            steps_per_epoch=overrides.steps // epochs,
            warmup_steps=min(schedule.warmup_steps, overrides.steps // 10),
        )
    changed = replace(
        recipe,
        spacing_mm=overrides.spacing_mm or recipe.spacing_mm,
        # A CT within the tolerance would keep its own, finer voxels, and take a multiple of the time.
        spacing_tolerance=0.0 if overrides.spacing_mm else recipe.spacing_tolerance,
        crop_vox=overrides.crop_vox or recipe.crop_vox,
        network=network,
        # No validation during training: it would select weights by the test cases.
        schedule=replace(schedule, patience=0),
    )
    check_network(changed)
    return changed


def _epochs(steps: int) -> int:
    """Return the number of equal epochs of at most `STEPS_PER_EPOCH` steps; 1 if no number divides `steps`."""
    fewest = -(-steps // STEPS_PER_EPOCH)
    return next((n for n in range(fewest, 2 * fewest + 1) if steps % n == 0), 1)
