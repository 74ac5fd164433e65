"""CT and label volumes with their grid, and the label volume that a set of masks makes."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lib.errors import LabelError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray, MaskArray


@dataclass(frozen=True, slots=True)
class CtVolume:
    """A CT that passed every check of `lib.imaging.scans.read_ct`.

    Attributes:
        image_id: What errors and results call it; never the patient's name.
        array_hu: `(X, Y, Z)`, int16 or float32, Hounsfield units.
        grid: Where the voxels lie.
    """

    image_id: str
    array_hu: "np.ndarray[Any, np.dtype[Any]]"
    grid: Grid


def as_hu(array: "np.ndarray[Any, np.dtype[Any]]") -> "np.ndarray[Any, np.dtype[Any]]":
    """Return `array` as int16 where every value is a whole number that fits, else as float32."""
    limits = np.iinfo(np.int16)
    if np.issubdtype(array.dtype, np.floating) and not np.array_equal(array, np.rint(array)):
        return array.astype(np.float32)
    is_small = array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max)
    return array.astype(np.int16 if is_small else np.float32)


@dataclass(frozen=True, slots=True)
class LabelVolume:
    """Organs drawn on a grid.

    Attributes:
        array: `(X, Y, Z)`, uint8; 0 is background.
        grid: Where the voxels lie.
        labels: TG-263 name -> value in `array`.
    """

    array: LabelArray
    grid: Grid
    labels: Mapping[str, int]

    def volumes_ml(self) -> dict[str, float]:
        """Return the volume in mL of each organ that has at least one voxel."""
        counts = np.bincount(self.array.ravel(), minlength=256)
        return {
            name: round(float(counts[value]) * self.grid.voxel_ml, 3)
            for name, value in self.labels.items()
            if counts[value]
        }


MAX_SHARED = 0.5
"""Two organs that share more than this part of the smaller one were not drawn as two organs."""


def combine_masks(
    masks: Mapping[str, MaskArray], labels: Mapping[str, int], grid: Grid, image_id: str
) -> tuple[LabelVolume, dict[str, int]]:
    """Return the label volume, and `"A & B"` -> voxels that both organs claim.

    A voxel that several organs claim becomes the smallest one's: a few voxels are much of an optic nerve and
    nothing of a parotid gland. Of two organs of one size the one with the lower value wins.

    Raises:
        LabelError: If two share over half of the smaller one.
    """
    sizes = {organ: int(np.count_nonzero(mask)) for organ, mask in masks.items()}
    shared = {}
    for a, b in combinations(sorted(masks, key=labels.__getitem__), 2):
        count = int(np.count_nonzero(masks[a] & masks[b]))
        if count > MAX_SHARED * min(sizes[a], sizes[b]):
            raise LabelError(
                f"{image_id}: {a} ({sizes[a]} voxels) and {b} ({sizes[b]}) share {count} voxels; one of them "
                "carries the wrong name"
            )
        if count:
            shared[f"{a} & {b}"] = count
    array = np.zeros(grid.shape_vox, np.uint8)
    for organ in sorted(masks, key=lambda o: (-sizes[o], -labels[o])):
        array[masks[organ]] = labels[organ]
    return LabelVolume(array, grid, {o: labels[o] for o in labels if o in masks}), shared
