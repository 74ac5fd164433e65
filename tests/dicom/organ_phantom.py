"""Organs that are easily damaged in a DICOM object: a ring, two voxels, a thread, a pair of unlike sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset

from lib.dicom.ct_writer import write_ct_series
from lib.imaging.dicom_series import read_headers
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray, MaskArray
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.organs.table import organ_set
from tests.phantoms import make_ct, make_grid, rotation, stored_as

LABELS = organ_set("pddca")
SHAPE_VOX = (48, 40, 20)
NAMES = ("Brainstem", "OpticChiasm", "OpticNrv_L", "Parotid_L", "Parotid_R", "Glnd_Submand_R")
"""In the order of their values 1, 2, 4, 6, 7, 9, so that the segment number differs from the value."""


@dataclass(frozen=True, slots=True)
class Case:
    """A CT series on disk, and a label on its voxels.

    Attributes:
        folder: The folder of the series.
        headers: Its slices.
        grid: The grid of the slices.
        label: A label on the same voxels, with its axes in another order and direction.
        expected: The array of the label with the axes of `grid`.
    """

    folder: Path
    headers: list[FileDataset]
    grid: Grid
    label: LabelVolume
    expected: LabelArray


def organs(shape: Sequence[int] = SHAPE_VOX) -> LabelArray:
    """Return a label of at least `SHAPE_VOX` voxels with `NAMES`."""
    x, y, z = np.indices(shape, dtype=np.float32)
    array = np.zeros(shape, np.uint8)

    def ball(middle: Sequence[float], radii: Sequence[float]) -> MaskArray:
        a, b, c = ((v - m) / r for v, m, r in zip((x, y, z), middle, radii, strict=True))
        return np.asarray(a**2 + b**2 + c**2 < 1)

    around = np.hypot((x - 22) / 8, (y - 18) / 6)
    array[(around < 1) & (around > 0.45) & (z > 3) & (z < 17)] = LABELS["Brainstem"]
    array[22:24, 18, 10] = LABELS["OpticChiasm"]
    for step in range(7):
        array[34 + step, 4 + step, 12] = LABELS["OpticNrv_L"]
    array[ball((38, 22, 9), (7, 9, 6))] = LABELS["Parotid_L"]
    array[ball((7, 26, 8), (5, 6, 4))] = LABELS["Parotid_R"]
    array[0:9, 0:7, 0:4] = LABELS["Glnd_Submand_R"]
    return array


def make_case(folder: Path) -> Case:
    """Return organs on an oblique CT of 1.5 x 2 x 3 mm, with reversed rows and descending file names.

    The axes of the label could be those of a NIfTI copy: in another order, two of them reversed.
    """
    upright = make_grid(SHAPE_VOX, rotation(about_x_deg=10, about_z_deg=20))
    ct, label = make_ct(upright), CtVolume("label", organs(), upright)
    how = ((0, 1, 2), (True, False, True))
    write_ct_series(stored_as(ct, *how), folder, patient_id="organs")
    descend(folder)
    headers, grid = read_headers(folder, image_id="organs")
    other = stored_as(label, (2, 0, 1), (True, False, True))
    # Rows and slices are reversed, then the reader sorts the slices along the cross product: x and z.
    expected = stored_as(label, *how)
    assert expected.grid.is_same_as(grid)
    return Case(
        folder, headers, grid, LabelVolume(other.array_hu, other.grid, LABELS), expected.array_hu
    )


def descend(folder: Path) -> None:
    """Number the slices and name their files from the last to the first."""
    paths = sorted(folder.glob("*.dcm"))
    for number, path in enumerate(reversed(paths), start=1):
        dataset = pydicom.dcmread(path)
        dataset.InstanceNumber = number
        dataset.save_as(folder / f"descending_{number:03d}.dcm")
        path.unlink()


def dsc(one: LabelArray, other: LabelArray, value: int) -> float:
    """Return the Dice coefficient: twice the common voxels divided by the sum of both."""
    a, b = one == value, other == value
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
