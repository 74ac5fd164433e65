"""Functions to read CTs with a verified grid, and to read and write label volumes on that grid.

The grid of a volume is the input's own, voxel for voxel; nothing is reoriented or resampled. An input without a
position in the patient is refused.

- NIfTI is read with nibabel: ITK, asked for `s.nii.gz`, returns `s.nii` if both exist, reads a file without
  orientation as if it had one, and silently loses data when the disk is full. If sform and qform differ, the
  one that ITK (and 3D Slicer) uses is taken; a difference above 1 mm is refused.
- NRRD and MetaImage are read with ITK, through a link in a folder of its own, after a check of the header: ITK
  ignores unknown spaces, and follows a header to any other file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import GeometryError, LabelError, ReaderStoppedError, ScanError
from lib.imaging.dicom_series import read_series
from lib.imaging.formats import (
    CT_STEMS,
    read_volume,
    stem_of,
    suffix_of,
    write_volume,
)
from lib.imaging.geometry import Grid, require_same_grid
from lib.imaging.hounsfield import require_hu
from lib.imaging.pixel_padding import PADDING_HU
from lib.imaging.quantities import LabelArray
from lib.imaging.volumes import CtVolume, LabelVolume, as_hu
from lib.isolation.reader_pool import readers

MIN_SIDE_VOX = 8
"""Smallest number of voxels of a CT along each axis; projections and localizers have fewer."""

_CT_TASK, _LABEL_TASK = "lib.imaging.reader_tasks:ct", "lib.imaging.reader_tasks:label"
readers().modules.append("lib.imaging.reader_tasks")


def read_ct(path: Path, *, image_id: str | None = None) -> CtVolume:
    """Return the CT in a file or in the folder of a DICOM series, named `scan_name(path)` by default.

    The file is read in a process of its own (`lib.isolation`). Values below -1024 HU, which some scanners write
    outside their field of view, become -1024.

    Raises:
        ScanError: If there is not exactly one readable 3D volume that can be a CT in HU.
        GeometryError: If its voxels have no position, or do not form a regular grid.
        ReaderStoppedError: If the process that reads the file died, or exceeded a limit.
    """
    case = image_id or scan_name(path)
    grid, array_hu = _read(_CT_TASK, {}, path, case)
    return CtVolume(case, array_hu, grid)


def parse_ct(path: Path, case: str) -> CtVolume:
    """Return the CT as `read_ct` does, but read in this process, which a damaged file can end.

    Args:
        path: As in `read_ct`.
        case: Id of the image.
    """
    ct = (
        read_series(path, image_id=case)
        if path.is_dir()
        else CtVolume(case, *read_volume(path, case))
    )
    require_volume(case, ct.grid)
    array = ct.array_hu
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ScanError(f"{case}: some voxels are NaN or infinite; export the CT again")
    require_hu(array, case)
    np.maximum(array, np.asarray(PADDING_HU, array.dtype), out=array)
    return CtVolume(case, as_hu(array), ct.grid)


def require_volume(image_id: str, grid: Grid) -> None:
    """Raise unless a grid can be that of a patient's CT.

    Raises:
        ScanError: If it is too small for one.
    """
    if min(grid.shape_vox) < MIN_SIDE_VOX:
        raise ScanError(
            f"{image_id}: {grid} is a 2D image or localizer; at least {MIN_SIDE_VOX} slices of "
            f"{MIN_SIDE_VOX} x {MIN_SIDE_VOX} voxels expected"
        )


def read_label(
    path: Path, *, image_id: str, image_grid: Grid | None, integers_only: bool = False
) -> tuple[LabelArray, Grid]:
    """Return the label volume in a file, and its grid; a label without organs contains zeros only.

    A file on another grid is refused by its header, before its voxels are unpacked: a small compressed file
    can hold gigabytes of them.

    Args:
        path: A file with one of `SCAN_SUFFIXES`.
        image_id: Id of the labelled image, for messages.
        image_grid: Grid of that image; None to accept any grid.
        integers_only: Whether to refuse floating-point voxels even if each is a whole number.

    Raises:
        LabelError: If the file holds anything but one 3D volume of whole numbers from 0 to 255, or if the
            process that reads it died.
        GeometryError: If its grid is not the image's.
    """
    expected = None if image_grid is None else image_grid.as_json()
    arguments = {"image_grid": expected, "integers_only": integers_only}
    try:
        grid, array = _read(_LABEL_TASK, arguments, path, image_id)
    except ReaderStoppedError as error:
        raise LabelError(str(error)) from error
    return array, grid


def parse_label(
    path: Path, *, image_id: str, image_grid: Grid | None, integers_only: bool = False
) -> tuple[LabelArray, Grid]:
    """Return the label as `read_label` does, but read in this process, which a damaged file can end."""

    def require(grid: Grid) -> None:
        if image_grid is not None:
            require_same_grid(image_id, label=grid, image=image_grid)

    try:
        array, grid = read_volume(path, image_id, require=require)
    except GeometryError:
        raise
    except ScanError as error:
        raise LabelError(str(error)) from error
    if np.issubdtype(array.dtype, np.floating) and not np.array_equal(array, np.rint(array)):
        raise LabelError(
            f"{image_id}: the label holds NaN or fractions; whole numbers expected: resample labels with "
            "nearest neighbour, and send labels rather than probabilities"
        )
    if integers_only and not np.issubdtype(array.dtype, np.integer):
        raise LabelError(
            f"{image_id}: the label's voxels are {array.dtype}; whole numbers expected: save it as uint8"
        )
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise LabelError(
            f"{image_id}: label values run from {low:g} to {high:g}; 0 to 255 expected: is it an image?"
        )
    require(grid)
    return array.astype(np.uint8), grid


def _read(
    task: str, arguments: Mapping[str, Any], path: Path, case: str
) -> tuple[Grid, "np.ndarray[Any, np.dtype[Any]]"]:
    """Return the grid and the voxels that a reader process found in a file or folder."""
    all_arguments = {**arguments, "path": str(path.absolute()), "case": case}
    result, array = readers().run(task, all_arguments, path=path, case=case)
    grid = Grid.from_json(result)
    if array is None or array.shape != grid.shape_vox:
        raise ReaderStoppedError(
            f"{case}: the reader of {path.name} gave no volume; export it again"
        )
    return grid, array


def write_label(path: Path, label: LabelVolume, *, dtype: type[np.integer[Any]] = np.uint8) -> None:
    """Write `label` to `path`, atomically; compressed unless `path` ends in `.nii`.

    Raises:
        LabelError: If the suffix is none of `SCAN_SUFFIXES`, or a value does not fit `dtype`.
        StorageFullError: If the disk is full.
    """
    array = label.array.astype(dtype)
    if not np.array_equal(array, label.array):
        raise LabelError(
            f"{path.name}: values up to {label.array.max()} do not fit {dtype.__name__}"
        )
    write_volume(path, array, label.grid)


def write_ct(path: Path, ct: CtVolume) -> None:
    """Write `ct` to `path` as `write_label` writes labels.

    Raises:
        LabelError: If the suffix is none of `SCAN_SUFFIXES`.
        StorageFullError: If the disk is full.
    """
    write_volume(path, ct.array_hu, ct.grid)


def scan_name(path: Path) -> str:
    """Return the name of a scan: its folder for DICOM and for `ct.*`, `img.*`, `image.*`, else its stem."""
    path = path.absolute()
    if path.is_dir():
        return path.name
    stem = stem_of(path)
    return path.parent.name if suffix_of(path) and stem.lower() in CT_STEMS else stem
