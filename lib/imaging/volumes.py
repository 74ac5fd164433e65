"""Volumes with their grid: a CT, and the label volume drawn on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray


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
