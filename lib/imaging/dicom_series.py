"""Reading of one DICOM CT series: its sorted slices, its grid, and its voxels in HU."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from lib.errors import ScanError
from lib.imaging.acquisitions import require_one_acquisition
from lib.imaging.dicom_files import DICOM_SUFFIXES, is_dicom, read_dicom, text_of
from lib.imaging.dicom_pixels import PixelLayout, pixel_layout, rescale_of, slice_hu
from lib.imaging.dicom_values import slice_name
from lib.imaging.geometry import Grid
from lib.imaging.hounsfield import Rescale, require_equal_scale
from lib.imaging.slice_geometry import sorted_slices
from lib.imaging.slice_selection import select_slices

_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
"""UIDs to which a SEG or an RTSTRUCT refers."""

_APPLE_DOUBLE = b"\0\5\x16\7"
"""Start of the file that macOS writes beside each file on other file systems."""

Array = np.ndarray[Any, np.dtype[Any]]

_log = logging.getLogger(__name__)
_Header = TypeVar("_Header", bound=Dataset)


def holds_dicom(folder: Path) -> bool:
    """Return whether `folder` directly contains a DICOM file other than a DICOMDIR."""
    return any(is_dicom(p) for p in dicom_candidates(folder))


def require_series(path: Path, image_id: str) -> Path:
    """Return `path` if it is the folder of a DICOM series.

    Raises:
        ScanError: If the image has another format.
    """
    inner = [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []
    if path.is_dir() and any(holds_dicom(folder) for folder in (path, *inner)):
        return path
    raise ScanError(
        f"{image_id}: the image is not a DICOM series, to whose slices a SEG or RTSTRUCT refers; send "
        "the CT as DICOM (a zip of the series), or request the contours as NIfTI"
    )


def read_series(folder: Path, *, image_id: str) -> tuple[Array, Grid]:
    """Return the voxels `(X, Y, Z)` of a CT series, int16 or float32, and their grid; as `series_slices`."""
    slices, grid = series_slices(folder, image_id=image_id)
    array: Array = np.zeros(grid.shape_vox, np.int16, order="F")
    for number, slice_yx in enumerate(slices):
        if slice_yx.dtype != array.dtype:
            array = array.astype(np.float32, copy=False)
        array[:, :, number] = slice_yx.T
    return array, grid


def series_slices(folder: Path, *, image_id: str) -> tuple[Iterator[Array], Grid]:
    """Return the slices `(Y, X)` of the CT in `folder` or its direct subfolders, and their grid.

    Axes of the grid are x (along a row of pixels), y (down a column) and z along their cross product, so that
    it is right-handed; the slices come in the order of z. Rescale slope and intercept of each slice are
    applied; padding becomes -1024 HU. Files that are not DICOM, objects without slices such as RTSTRUCT, and
    localizers are ignored. Pixels are read when a slice is asked for.

    Raises:
        ScanError: If there is not exactly one series of single-frame, monochrome CT images, a slice is
            damaged or empty, or slices do not have one scale.
        GeometryError: If the slices do not form a regular grid.
    """
    headers, grid = _read_slices(folder, image_id)
    layouts = [pixel_layout(header, image_id) for header in headers]
    rescales = [rescale_of(header, image_id) for header in headers]
    return _slices_hu(headers, layouts, rescales, image_id), grid


def _slices_hu(
    headers: Sequence[FileDataset],
    layouts: Sequence[PixelLayout],
    rescales: Sequence[Rescale],
    image_id: str,
) -> Iterator[Array]:
    """Yield each slice `(Y, X)` in HU, int16 or float32."""
    varied: list[int] = []
    before_yx: Array | None = None
    for number, (header, layout) in enumerate(zip(headers, layouts, strict=True)):
        slice_yx = slice_hu(header, layout, image_id)
        if before_yx is not None:
            pair = (rescales[number - 1], rescales[number])
            where = f"{image_id}: {slice_name(header)}"
            require_equal_scale((before_yx, slice_yx), pair, where)
        if slice_yx.min() < slice_yx.max():
            if varied and varied[-1] < number - 1:
                raise ScanError(
                    f"{image_id}: {slice_name(headers[number - 1])} holds one value only, between slices with "
                    "an image; its pixels were lost: export the series again"
                )
            varied.append(number)
        yield slice_yx
        before_yx = slice_yx


def read_headers(folder: Path, *, image_id: str) -> tuple[list[FileDataset], Grid]:
    """Return the slices' headers, in the order of the grid's z axis, and the grid.

    SEG and RTSTRUCT objects refer to these headers: UIDs, patient, study. `header.filename` is the slice's
    file.

    Raises:
        ScanError: As `read_series`; also if a slice has no UID to refer to, or two slices have the same.
        GeometryError: As `read_series`.
    """
    headers, grid = _read_slices(folder, image_id)
    for header in headers:
        missing = [keyword for keyword in _IDENTITY if not text_of(header, keyword)]
        if missing:
            raise ScanError(
                f"{image_id}: {slice_name(header)} has no {missing[0]}, to which a SEG or RTSTRUCT refers; "
                "export the CT again from its origin, or request the contours as NIfTI"
            )
    return headers, grid


def _read_slices(folder: Path, image_id: str) -> tuple[list[FileDataset], Grid]:
    """Return the slices' headers, sorted, and the grid."""
    try:
        headers = [_header(path, image_id) for path in _dicom_files(folder, image_id)]
    except OSError as error:
        raise ScanError(f"{image_id}: the folder cannot be read: {error}") from error
    if not headers:
        raise ScanError(
            f"{image_id}: no DICOM files in the folder; give the folder of one CT series"
        )
    return ct_slices(headers, image_id=image_id)


def ct_slices(headers: Sequence[_Header], *, image_id: str) -> tuple[list[_Header], Grid]:
    """Return the slices among `headers`, in the order of the grid's z axis, and the grid.

    Args:
        headers: All attributes except pixels, from files or from a PACS.
        image_id: For messages.

    Raises:
        ScanError: If they do not belong to one acquisition of single-frame, monochrome CT images.
        GeometryError: If the slices do not form a regular grid.
    """
    slices, grid = sorted_slices(select_slices(headers, image_id), image_id=image_id)
    require_one_acquisition(slices, image_id)
    return slices, grid


def dicom_candidates(folder: Path) -> list[Path]:
    """Return the files in `folder`, sorted, without hidden files and DICOMDIR."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return [p for p in files if p.name.upper() != "DICOMDIR"]


def _dicom_files(folder: Path, image_id: str) -> Iterator[Path]:
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for path in (p for f in (folder, *inner) for p in dicom_candidates(f)):
        if is_dicom(path):
            yield path
        elif path.suffix.lower() in DICOM_SUFFIXES and not _is_apple_double(path):
            raise ScanError(
                f"{image_id}: {path.name} ({path.stat().st_size} bytes) is not a DICOM file in spite of its "
                "name; slices may be missing: export the series again"
            )


def _header(path: Path, image_id: str) -> FileDataset:
    try:
        return read_dicom(path)
    except ScanError as error:
        raise ScanError(f"{image_id}: {error}") from error


def _is_apple_double(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_APPLE_DOUBLE)) == _APPLE_DOUBLE
