"""CT and label volumes with their grid, and the combination of masks into a label volume."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from lib.errors import LabelError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray, LabelArray, MaskArray


@dataclass(frozen=True, slots=True)
class CtVolume:
    """A CT that passed every check of `lib.imaging.scans.read_ct`.

    Attributes:
        image_id: Id in messages and results; never the patient's name.
        array_hu: `(X, Y, Z)`, int16 or float32, Hounsfield units.
        grid: Position of the voxels.
    """

    image_id: str
    array_hu: "np.ndarray[Any, np.dtype[Any]]"
    grid: Grid


def as_hu(array: "np.ndarray[Any, np.dtype[Any]]") -> "np.ndarray[Any, np.dtype[Any]]":
    """Return `array` as int16 if every value is an integer in its range, else float32; copied if need be."""
    limits = np.iinfo(np.int16)
    if array.dtype == np.int16:
        return array
    if np.issubdtype(array.dtype, np.floating) and not np.array_equal(array, np.rint(array)):
        return array.astype(np.float32, copy=False)
    is_small = array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max)
    return array.astype(np.int16 if is_small else np.float32, copy=False)


Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class LabelVolume:
    """Organs on a grid, as one value per voxel.

    Attributes:
        array: `(X, Y, Z)`, uint8; 0 is background. Not to be changed once `boxes` is known.
        grid: Position of the voxels.
        labels: TG-263 name -> value in `array`.
    """

    array: LabelArray
    grid: Grid
    labels: Mapping[str, int]

    @cached_property
    def boxes(self) -> Mapping[str, Box]:
        """The smallest box around each organ that has at least one voxel, in the order of `labels`."""
        boxes = dict(enumerate(find_objects(self.array), 1))
        return {name: boxes[value] for name, value in self.labels.items() if boxes.get(value)}

    def mask_in_box(self, name: str) -> MaskArray:
        """Return the voxels of an organ within its box."""
        return np.asarray(self.array[self.boxes[name]] == self.labels[name])

    def volumes_ml(self) -> dict[str, float]:
        """Return the volume in mL of each organ that has at least one voxel."""
        return {
            name: round(float(np.count_nonzero(self.mask_in_box(name))) * self.grid.voxel_ml, 3)
            for name in self.boxes
        }

    def digest(self) -> str:
        """Return a SHA-256 that is equal for labels with the same organs on the same voxels.

        The values of the organs do not count, nor do organs without a voxel.
        """
        found = hashlib.sha256(repr(self.array.shape).encode())
        for name, box in sorted(self.boxes.items()):
            corners = [(part.start, part.stop) for part in box]
            found.update(f"{name}{corners}".encode())
            found.update(np.packbits(self.mask_in_box(name)).tobytes())
        return found.hexdigest()


def centre_ras_mm(mask: MaskArray, box: Box, grid: Grid) -> FloatArray:
    """Return the mean position `(3,)` of the voxels of a mask that is not empty, in mm RAS.

    Args:
        mask: The mask within `box`.
        box: Position of the mask on `grid`.
        grid: Grid of the whole volume.
    """
    counts = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    centre = [
        part.start + float(np.average(np.arange(len(count)), weights=count))
        for part, count in zip(box, counts, strict=True)
    ]
    return np.asarray((grid.affine_ras @ [*centre, 1.0])[:3])


MAX_SHARED = 0.5
"""Largest overlap of two organs, as a share of the smaller one; above it a name must be wrong."""


def combine_masks(
    masks: Mapping[str, MaskArray], labels: Mapping[str, int], grid: Grid, image_id: str
) -> tuple[LabelVolume, dict[str, int]]:
    """Return the label volume of `masks`, and `"A & B"` -> number of voxels that both organs share.

    A shared voxel is assigned to the smallest organ: a few voxels are a large part of an optic nerve and a
    negligible part of a parotid gland. Of two organs of equal size, the one with the lower value gets it.

    Raises:
        LabelError: If two organs share more than half of the smaller one.
    """
    sizes = {organ: int(np.count_nonzero(mask)) for organ, mask in masks.items()}
    shared = {}
    for a, b in combinations(sorted(masks, key=labels.__getitem__), 2):
        count = int(np.count_nonzero(masks[a] & masks[b]))
        if count > MAX_SHARED * min(sizes[a], sizes[b]):
            raise LabelError(
                f"{image_id}: {a} ({sizes[a]} voxels) and {b} ({sizes[b]}) share {count} voxels; one of them "
                "has the wrong name"
            )
        if count:
            shared[f"{a} & {b}"] = count
    array = np.zeros(grid.shape_vox, np.uint8)
    for organ in sorted(masks, key=lambda o: (-sizes[o], -labels[o])):
        array[masks[organ]] = labels[organ]
    return LabelVolume(array, grid, {o: labels[o] for o in labels if o in masks}), shared
