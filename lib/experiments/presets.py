"""A recipe made smaller, so that dozens of trainings fit into an afternoon."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from lib.errors import ConfigError
from lib.imaging.quantities import ShapeVox, SpacingMm
from lib.networks.build import check_network
from lib.recipes.schema import Recipe

STEPS_PER_EPOCH = 100
"""At most about so many: a training that is killed loses no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What takes the place of the recipe's own; None leaves it.

    Attributes:
        spacing_mm: Voxel size that the network sees; every CT is resized to it, whatever the recipe tolerates.
        crop_vox: Size of a training crop and of the sliding window.
        width: Channels of the network's first level.
        steps: Optimiser steps of a training.
        batch_size: Crops in a step.
        learning_rate: At the start.
        ema_decay: Of the average of the weights.
    """

    spacing_mm: SpacingMm | None = None
    crop_vox: ShapeVox | None = None
    width: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    ema_decay: float | None = None

    def over(self, other: "Overrides") -> "Overrides":
        """Return these, and where they leave something, `other`'s."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: value for name, value in mine.items() if value is not None})


# One small crop a step: an organ is found after a number of steps, whatever the size of a step. On 32 OpenKBP
# cases 500 steps of one crop of 32 voxels a side (63 s of one core) found four of seven organs, 1,000 of 24
# voxels (77 s) six, 1,600 of them (125 s) all, with a mean DSC of 0.55; half the width found one in 1,000.
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
"""Name -> what it changes.

`small` is for two CPU cores: a round takes some three minutes of one of them (two for the training, a quarter
for 20 test cases, one for the scores of 60, four times that for samples), the default simulation about 90
minutes of both.
"""


def smaller(recipe: Recipe, changes: Overrides) -> Recipe:
    """Return `recipe` with `changes`; the schedule keeps its form over the new number of steps.

    Raises:
        ConfigError: If the recipe does not bear a change.
    """
    if changes.steps is not None and changes.steps < 1:
        raise ConfigError(f"a training takes at least 1 step, not {changes.steps}")
    network, schedule = recipe.network, recipe.schedule
    for name in ("batch_size", "learning_rate", "ema_decay"):
        if (value := getattr(changes, name)) is not None:
            schedule = replace(schedule, **{name: value})
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
        # A CT that is shown as it is would have twice the voxels, and take twice the time.
        spacing_tolerance=0.0 if changes.spacing_mm else recipe.spacing_tolerance,
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
