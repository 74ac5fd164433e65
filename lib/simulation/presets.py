"""A recipe made smaller, so that dozens of trainings fit into an afternoon."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from lib.errors import ConfigError
from lib.networks.build import check_network
from lib.recipes import Recipe
from lib.units import ShapeVox, SpacingMm

STEPS_PER_EPOCH = 100
"""At most about so many: a training that is killed loses no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What takes the place of the recipe's own; None leaves it.

    Attributes:
        spacing_mm: Voxel size that the network sees.
        crop_vox: Size of a training crop and of the sliding window.
        width: Channels of the network's first level.
        steps: Optimiser steps of a training.
    """

    spacing_mm: SpacingMm | None = None
    crop_vox: ShapeVox | None = None
    width: int | None = None
    steps: int | None = None

    def over(self, other: "Overrides") -> "Overrides":
        """Return these, and where they leave something, `other`'s."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: value for name, value in mine.items() if value is not None})


PRESETS: Mapping[str, Overrides] = {
    "full": Overrides(),
    "small": Overrides(spacing_mm=(6.0, 6.0, 4.0), crop_vox=(32, 32, 32), width=8, steps=600),
}
"""Name -> what it changes. `small` is for two CPU cores and a few hours."""


def smaller(recipe: Recipe, changes: Overrides) -> Recipe:
    """Return `recipe` with `changes`; the schedule keeps its form over the new number of steps.

    Raises:
        ConfigError: If the recipe does not bear a change.
    """
    if changes.steps is not None and changes.steps < 1:
        raise ConfigError(f"a training takes at least 1 step, not {changes.steps}")
    network, schedule = recipe.network, recipe.schedule
    if changes.width is not None:
        network = replace(network, width=changes.width)
    if changes.steps is not None:
        epochs = _epochs(changes.steps)
        schedule = replace(
            schedule,
            epochs=epochs,
            steps_per_epoch=changes.steps // epochs,
            warmup_steps=min(schedule.warmup_steps, changes.steps // 10),
        )
    changed = replace(
        recipe,
        spacing_mm=changes.spacing_mm or recipe.spacing_mm,
        crop_vox=changes.crop_vox or recipe.crop_vox,
        network=network,
        # The test cases choose nothing: nothing is validated while it trains.
        schedule=replace(schedule, patience=0),
    )
    check_network(changed)
    return changed


def _epochs(steps: int) -> int:
    """Return the fewest equal epochs of at most `STEPS_PER_EPOCH` steps; 1 where there are no such."""
    fewest = -(-steps // STEPS_PER_EPOCH)
    return next((n for n in range(fewest, 2 * fewest + 1) if steps % n == 0), 1)
