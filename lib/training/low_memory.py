"""Reduction of batches and crops when memory runs out, and recognition of such errors."""

from dataclasses import replace

import torch

from lib.errors import TrainingError
from lib.networks.build import size_divisor
from lib.recipes.schema import Recipe

SMALLEST_SIDE_VOX = 16
"""Smallest side of a crop, in voxels."""


def reduce_memory(recipe: Recipe, times: int) -> tuple[Recipe, str]:
    """Return the recipe with the batch, then the sides of the crop, halved `times` times; and a description.

    Raises:
        TrainingError: If batch and crop cannot be smaller.
    """
    change = ""
    for _ in range(times):
        recipe, change = _smaller(recipe)
    return recipe, change


def _smaller(recipe: Recipe) -> tuple[Recipe, str]:
    schedule = recipe.schedule
    if schedule.batch_size > 1:
        batch = schedule.batch_size // 2
        smaller = replace(recipe, schedule=replace(schedule, batch_size=batch))
        return smaller, f"a batch is {batch} instead of {schedule.batch_size} crops"
    x, y, z = (
        max(side // 2 // step * step, SMALLEST_SIDE_VOX)
        for side, step in zip(recipe.crop_vox, size_divisor(recipe), strict=True)
    )
    crop = (min(x, recipe.crop_vox[0]), min(y, recipe.crop_vox[1]), min(z, recipe.crop_vox[2]))
    if crop == recipe.crop_vox:
        raise TrainingError(
            f"there is not enough memory even for one crop of {_by(crop)} voxels; free memory, "
            "or train elsewhere"
        )
    return replace(recipe, crop_vox=crop), (
        f"a crop is {_by(crop)} instead of {_by(recipe.crop_vox)} voxels"
    )


def _by(sides: tuple[int, int, int]) -> str:
    return " x ".join(map(str, sides))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, of the GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and (
        "can't allocate memory" in text
        or "not enough memory" in text
        or "out of memory" in text
        or "cannot allocate memory" in text
        # Message of oneDNN if there is no memory for a convolution.
        or "could not create a primitive" in text
    )
