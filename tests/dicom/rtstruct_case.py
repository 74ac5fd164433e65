"""A CT series on disk, and functions that write contours on it and read them back.

The grid of the base phantom has 20 x 16 x 12 voxels of 1.5 x 2 x 3 mm, with the first voxel at LPS
(-10.25, -35.5, 120.75).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import FileDataset

from lib.dicom.ct_writer import write_ct_series
from lib.dicom.rtstruct import read_rtstruct
from lib.dicom.structures import StructureSet
from lib.imaging.dicom_series import read_headers
from lib.imaging.quantities import MaskArray
from lib.imaging.volumes import CtVolume
from tests.rtstruct_files import Corners, RoiSpec, box_corners, in_slice, write_rtstruct

SQUARE = box_corners(2.5, 3.5, 8.5, 9.5)
"""Voxels 3..8 along x and 4..9 along y: 6 x 6 = 36 centres."""

HOLE = box_corners(4.5, 5.5, 6.5, 7.5)
"""Voxels 5, 6 along x and 6, 7 along y: 4 centres of `SQUARE`."""


class RtstructCase:
    """A CT series on disk, with functions that write contours on it and read them back."""

    def __init__(self, ct: CtVolume, folder: Path) -> None:
        write_ct_series(ct, folder / "series", patient_id="anonymous")
        self.path = folder / "rtstruct.dcm"
        self.headers, self.grid = read_headers(folder / "series", image_id="case7")

    def write(self, *rois: RoiSpec, **changes: Any) -> None:
        write_rtstruct(self.path, self.headers, rois, **changes)

    def edit(self, change: Callable[[FileDataset], object]) -> None:
        dataset = pydicom.dcmread(self.path)
        change(dataset)
        dataset.save_as(self.path)

    def read(self, **options: Any) -> StructureSet:
        return read_rtstruct(self.path, self.headers, self.grid, image_id="case7", **options)

    def roi(self, *contours: tuple[Corners, float], **changes: Any) -> RoiSpec:
        """Return a ROI of contours given by corners and slice, both in voxels."""
        lps = [in_slice(self.grid, corners, z) for corners, z in contours]
        return RoiSpec(**{"name": "Organ", "contours": list(lps), **changes})

    def mask(self, *contours: tuple[Corners, float]) -> MaskArray:
        self.write(self.roi(*contours))
        return self.read().masks["Organ"]

    def changes(self, *contours: tuple[Corners, float]) -> tuple[str, ...]:
        self.write(self.roi(*contours))
        return self.read().changes
