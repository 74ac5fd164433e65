"""Functions to read CTs with a verified grid, and to read and write label volumes on that grid.

The grid of a volume is the input's own, voxel for voxel; nothing is reoriented or resampled. An input without a
position in the patient is refused.

- NIfTI is read with nibabel: ITK, asked for `s.nii.gz`, returns `s.nii` if both exist, reads a file without
  orientation as if it had one, and silently loses data when the disk is full. If sform and qform differ, the
  one that ITK (and 3D Slicer) uses is taken; a difference above 1 mm is refused.
- Headers of NRRD and MetaImage are read with ITK, after a check: ITK ignores unknown spaces, and follows a
  header to any other file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import GeometryError, LabelError, ReaderStoppedError, ScanError
from lib.imaging.dicom_series import read_series
from lib.imaging.formats import (
    CT_STEMS,
    stem_of,
    suffix_of,
    write_volume,
)
from lib.imaging.geometry import Grid, require_same_grid
from lib.imaging.hounsfield import HuCheck, require_hu
from lib.imaging.pixel_padding import PADDING_HU
from lib.imaging.quantities import LabelArray
from lib.imaging.volume_reading import read_volume
from lib.imaging.volumes import CtVolume, LabelVolume, as_hu
from lib.isolation.array_transfer import Array, Arrived
from lib.isolation.reader_pool import readers

MIN_SIDE_VOX = 8
"""Smallest number of voxels of a CT along each axis; projections and localizers have fewer."""

MIN_LENGTHS_MM, MAX_LENGTHS_MM = (1.0, 1.0, 10.0), (1000.0, 1000.0, 3000.0)
"""Sides of a CT from short to long: scanners reconstruct up to 850 mm, and their tables move 2200 mm."""

CT_DTYPE, LABEL_DTYPE = np.dtype(np.int16), np.dtype(np.uint8)
"""Types of voxels that need no conversion."""

UNCHECKED = "unchecked"
"""Key of a reader's result: the values of a CT are still to be checked; a reader checks those it converts."""

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
    check = _ArrivingCheck(case)
    result, array, grid = _read(_CT_TASK, {}, path, case, arrived=check)
    if result.get(UNCHECKED):
        _raise_padding(array, check.finish(array))
    return CtVolume(case, array, grid)


class _ArrivingCheck:
    """The check of a CT that needs no conversion, while a reader sends it."""

    def __init__(self, case: str) -> None:
        self._case = case
        self._array: Array | None = None
        self._check: HuCheck | None = None

    def __call__(self, array: Array, start: int, stop: int) -> None:
        """Check the slices from `start` to `stop`."""
        if array.ndim != 3 or array.dtype != CT_DTYPE:
            return
        if array is not self._array:
            self._array, self._check = array, HuCheck(array.shape, self._case)
        if self._check is not None:
            self._check.add(array[:, :, start:stop])

    def finish(self, array: Array) -> float:
        """Return the lowest value of the CT that arrived; raises as `HuCheck.finish`."""
        if self._check is None or array is not self._array:
            raise ReaderStoppedError(
                f"{self._case}: the reader gave {array.dtype} for a CT; export it again"
            )
        return self._check.finish()


def parse_ct(path: Path, case: str) -> CtVolume:
    """Return the CT as `read_ct` does, but read in this process, which a damaged file can end.

    Args:
        path: As in `read_ct`.
        case: Id of the image.
    """
    array, grid = (
        read_series(path, image_id=case)
        if path.is_dir()
        else read_volume(path, case, require=lambda grid: require_volume(case, grid))
    )
    require_volume(case, grid)
    return checked_ct(case, array, grid)


def checked_ct(case: str, array: Array, grid: Grid) -> CtVolume:
    """Return the CT with these voxels, values below -1024 raised to it.

    Args:
        case: Id of the image.
        array: `(X, Y, Z)`, unchanged values of the file; changed in place.
        grid: Position of the voxels.

    Raises:
        ScanError: If the values cannot be HU.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ScanError(f"{case}: some voxels are NaN or infinite; export the CT again")
    _raise_padding(array, require_hu(array, case))
    return CtVolume(case, as_hu(array), grid)


def _raise_padding(array: Array, lowest: float) -> None:
    """Raise values below -1024 to it."""
    if lowest < PADDING_HU:
        np.maximum(array, np.asarray(PADDING_HU, array.dtype), out=array)


def require_volume(image_id: str, grid: Grid) -> None:
    """Raise unless a grid can be that of a patient's CT.

    Raises:
        ScanError: If it has too few voxels for one.
        GeometryError: If it covers more or less than a CT can.
    """
    if min(grid.shape_vox) < MIN_SIDE_VOX:
        raise ScanError(
            f"{image_id}: {grid} is a 2D image or localizer; at least {MIN_SIDE_VOX} slices of "
            f"{MIN_SIDE_VOX} x {MIN_SIDE_VOX} voxels expected"
        )
    lengths_mm = [n * mm for n, mm in zip(grid.shape_vox, grid.spacing_mm, strict=True)]
    bounds = zip(MIN_LENGTHS_MM, sorted(lengths_mm), MAX_LENGTHS_MM, strict=True)
    if not all(low <= length <= high for low, length, high in bounds):
        sides, lowest, highest = (
            " x ".join(f"{mm:.4g}" for mm in lengths)
            for lengths in (lengths_mm, MIN_LENGTHS_MM, MAX_LENGTHS_MM)
        )
        raise GeometryError(
            f"{image_id}: the volume covers {sides} mm; {lowest} to {highest} mm expected: its lengths are not "
            "in mm, or its voxel size is damaged"
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
    with label_errors():
        _, array, grid = _read(_LABEL_TASK, arguments, path, image_id)
    return array, grid


@contextmanager
def label_errors() -> Iterator[None]:
    """Raise errors about a scan as errors about a label; those about its grid as they are."""
    try:
        yield
    except GeometryError:
        raise
    except ScanError as error:
        raise LabelError(str(error)) from error


def require_grid(label_grid: Grid, image_grid: Grid | None, image_id: str) -> None:
    """Raise unless a label's grid is that of its image, if one is given.

    Raises:
        GeometryError: If it is another.
    """
    if image_grid is not None:
        require_same_grid(image_id, label=label_grid, image=image_grid)


def parse_label(
    path: Path, *, image_id: str, image_grid: Grid | None, integers_only: bool = False
) -> tuple[LabelArray, Grid]:
    """Return the label as `read_label` does, but read in this process, which a damaged file can end."""
    with label_errors():
        array, grid = read_volume(
            path, image_id, require=lambda grid: require_grid(grid, image_grid, image_id)
        )
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
    return array.astype(np.uint8, copy=False), grid


def _read(
    task: str,
    arguments: Mapping[str, Any],
    path: Path,
    case: str,
    *,
    arrived: Arrived | None = None,
) -> tuple[Mapping[str, Any], Array, Grid]:
    """Return what a reader process found in a file or folder: its result, the voxels and their grid."""
    all_arguments = {**arguments, "path": str(path.absolute()), "case": case}
    result, array = readers().run(task, all_arguments, path=path, case=case, arrived=arrived)
    grid = Grid.from_json(result)
    if array is None or array.shape != grid.shape_vox:
        raise ReaderStoppedError(
            f"{case}: the reader of {path.name} gave no volume; export it again"
        )
    return result, array, grid


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
