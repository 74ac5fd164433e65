"""Reading of one DICOM CT series: its sorted slices, its grid, and its voxels in HU.

The position of a slice is given by ImagePositionPatient and ImageOrientationPatient only; InstanceNumber,
PatientPosition, file names and SliceThickness are ignored. ITK reads a series with a tilted gantry or uneven
steps as a regular grid and only warns; here both are refused. DICOM's world axes are LPS (PS3.3 C.7.6.2).
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset

from lib.errors import GeometryError, ScanError
from lib.imaging.dicom_files import DICOM_SUFFIXES, PARSING_ERRORS, is_dicom, read_dicom
from lib.imaging.geometry import Grid, ras_to_lps, require_right_angles
from lib.imaging.quantities import FloatArray
from lib.imaging.volumes import CtVolume, as_hu

TILT_TOLERANCE_DEG = 0.1
"""Largest angle in degrees between the slice normal and the line through the slices' first voxels."""

STEP_TOLERANCE_MM = 0.01
STEP_TOLERANCE = 0.01
"""Largest difference between steps: in mm, or as a share of the step, whichever is larger."""

LATTICE_TOLERANCE = 0.1
"""Largest distance of a slice from its position in the regular grid along the normal, as a share of a step."""

SIDEWAYS_TOLERANCE_MM = 0.1
"""Largest distance of a slice from the line through the first and the last slice, in mm."""

PADDING_HU = -1024
"""HU value of voxels outside the reconstruction circle."""

_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_MULTI_FRAME = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_COMPANIONS = ("RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "SEG", "SR", "PR", "KO")
"""Modalities of objects without slices that a planning system exports together with a CT."""

_ONE_VALUE = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6}
"""Attributes that must be equal in all slices within 1e-4 -> number of values."""

_POSITIVE = ("Rows", "Columns", "PixelSpacing", "RescaleSlope")

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


def read_series(folder: Path, *, image_id: str) -> CtVolume:
    """Return the CT whose slices are in `folder` or its direct subfolders.

    Array axes are x (along a row of pixels), y (down a column) and z along their cross product, so that the
    grid is right-handed. Rescale slope and intercept of each slice are applied; padding becomes -1024 HU. Files
    that are not DICOM, objects without slices such as RTSTRUCT, and localizers are ignored.

    Raises:
        ScanError: If there is not exactly one series of single-frame, monochrome CT images, or a slice is
            damaged.
        GeometryError: If the slices do not form a regular grid.
    """
    headers, grid = read_headers(folder, image_id=image_id)
    array: np.ndarray[Any, np.dtype[Any]] = np.zeros(grid.shape_vox, np.int16, order="F")
    for number, header in enumerate(headers):
        slice_xy = as_hu(_pixels_hu(header, image_id).T)
        if slice_xy.dtype != array.dtype:
            array = array.astype(np.float32, copy=False)
        _require_shape(slice_xy.shape, grid, header, image_id)
        array[:, :, number] = slice_xy
    return CtVolume(image_id, array, grid)


def read_headers(folder: Path, *, image_id: str) -> tuple[list[FileDataset], Grid]:
    """Return the slices' headers, in the order of the grid's z axis, and the grid.

    SEG and RTSTRUCT objects refer to these headers: UIDs, patient, study. `header.filename` is the slice's
    file.

    Raises:
        ScanError: As `read_series`.
        GeometryError: As `read_series`.
    """
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
        ScanError: If they do not belong to one series of single-frame, monochrome CT images.
        GeometryError: If the slices do not form a regular grid.
    """
    return sorted_slices(_ct_headers(headers, image_id), image_id=image_id)


def sorted_slices(headers: Sequence[_Header], *, image_id: str) -> tuple[list[_Header], Grid]:
    """Return the slices of one series in the order of the grid's z axis, and the grid.

    Raises:
        ScanError: If a slice has no position.
        GeometryError: If they do not form a regular grid.
    """
    _require_one_grid(headers, image_id)
    if len(headers) == 1:
        raise GeometryError(
            f"{image_id}: the series has a single slice, so that the slice distance is unknown; "
            "export the whole series"
        )
    row, column = np.array(_numbers(headers[0], "ImageOrientationPatient", 6, image_id)).reshape(
        2, 3
    )
    normal = np.cross(row, column)
    if abs(np.linalg.norm(normal) - 1) > 1e-3:
        raise GeometryError(
            f"{image_id}: ImageOrientationPatient is {[*row, *column]}; two unit vectors at right angles "
            "expected; export the series again"
        )
    positions = np.array([_numbers(h, "ImagePositionPatient", 3, image_id) for h in headers])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    step_mm = _regular_step_mm(positions, np.stack([row, column, normal]), image_id)

    affine = np.eye(4)
    y_mm, x_mm = _numbers(headers[0], "PixelSpacing", 2, image_id)  # between rows, between columns
    affine[:3, :3] = np.stack([row * x_mm, column * y_mm, normal * step_mm], axis=1)
    affine[:3, 3] = positions[0]
    shape = (int(headers[0].Columns), int(headers[0].Rows), len(headers))
    grid = Grid.from_affine(shape, ras_to_lps(affine))
    require_right_angles(image_id, grid)
    return [headers[i] for i in order], grid


def dicom_candidates(folder: Path) -> list[Path]:
    """Return the files in `folder`, sorted, without hidden files and DICOMDIR."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return [p for p in files if p.name.upper() != "DICOMDIR"]


def _dicom_files(folder: Path, image_id: str) -> Iterator[Path]:
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for path in (p for f in (folder, *inner) for p in dicom_candidates(f)):
        if is_dicom(path):
            yield path
        elif path.suffix.lower() in DICOM_SUFFIXES:
            raise ScanError(
                f"{image_id}: {path.name} ({path.stat().st_size} bytes) is not a DICOM file in spite of its "
                "name; slices may be missing: export the series again"
            )


def _ct_headers(headers: Sequence[_Header], image_id: str) -> list[_Header]:
    """Return the headers of the only CT series among `headers`, unsorted."""
    slices = [h for h in headers if _text(h, "Modality") not in _COMPANIONS]
    if not slices:
        modalities = ", ".join(sorted({_text(h, "Modality") for h in headers}))
        raise ScanError(
            f"{image_id}: the folder holds {modalities} but no CT; export the CT series as well"
        )
    scans = [h for h in slices if not is_localizer(h)]
    if not scans:
        raise ScanError(
            f"{image_id}: the folder holds localizers only; export the CT series itself"
        )
    if len(scans) < len(headers):
        _log.info(
            "%s: ignored %d DICOM files that are not slices", image_id, len(headers) - len(scans)
        )
    series = Counter((_text(h, "SeriesInstanceUID"), _text(h, "Modality")) for h in scans)
    if len(series) > 1:
        listing = ", ".join(
            f"{modality} of {n} slices" for (_, modality), n in series.most_common()
        )
        raise ScanError(
            f"{image_id}: the folder holds {len(series)} series ({listing}); give a folder with one of them"
        )
    for header in scans:
        _require_ct_slice(header, image_id)
    return scans


def _header(path: Path, image_id: str) -> FileDataset:
    try:
        return read_dicom(path)
    except ScanError as error:
        raise ScanError(f"{image_id}: {error}") from error


def is_localizer(header: Dataset) -> bool:
    """Return whether the image is a localizer: a projection for planning a scan (PS3.3 C.8.2.1.1.1)."""
    return "LOCALIZER" in _text(header, "ImageType")


def is_capture(header: Dataset) -> bool:
    """Return whether the image is not a CT image: a screen capture or a dose report, for example."""
    return _text(header, "SOPClassUID") not in (_CT_IMAGE, *_MULTI_FRAME)


def _require_ct_slice(header: Dataset, image_id: str) -> None:
    """Raise unless `header` belongs to a single monochrome CT slice."""
    modality, sop_class = _text(header, "Modality"), _text(header, "SOPClassUID")
    if modality != "CT":
        raise ScanError(
            f"{image_id}: the series is of modality {modality or 'unknown'}; CT expected"
        )
    if sop_class in _MULTI_FRAME or _text(header, "NumberOfFrames") not in ("", "1"):
        raise ScanError(
            f"{image_id}: {_name(header)} is a multi-frame (enhanced) CT; export it as single-frame "
            "CT Image Storage"
        )
    if sop_class != _CT_IMAGE:
        raise ScanError(
            f"{image_id}: {_name(header)} is of SOP class {pydicom.uid.UID(sop_class).name or 'unknown'}; "
            "CT Image Storage expected: screen captures and reconstructions are not scans"
        )
    samples, kind = _text(header, "SamplesPerPixel"), _text(header, "PhotometricInterpretation")
    if samples != "1" or kind != "MONOCHROME2":
        raise ScanError(
            f"{image_id}: {_name(header)} holds {samples or 'no'} sample(s) per pixel, {kind or 'unknown'}; "
            "one sample, MONOCHROME2, expected: colour and inverted images are not in HU"
        )


def _require_one_grid(headers: Sequence[Dataset], image_id: str) -> None:
    """Raise unless all slices have equal size, spacing, direction and frame of reference."""
    by_keyword: dict[str, list[tuple[float | str, ...]]] = {
        keyword: [tuple(_numbers(h, keyword, size, image_id)) for h in headers]
        for keyword, size in _ONE_VALUE.items()
    }
    differing = [
        k for k, values in by_keyword.items() if np.ptp(np.array(values), axis=0).max() > 1e-4
    ]
    by_keyword["FrameOfReferenceUID"] = [(_text(h, "FrameOfReferenceUID"),) for h in headers]
    if len(set(by_keyword["FrameOfReferenceUID"])) > 1:
        differing.append("FrameOfReferenceUID")
    for keyword in differing:
        counts = Counter(by_keyword[keyword]).most_common(3)
        values = "; ".join(f"{', '.join(map(str, value))} in {n} slices" for value, n in counts)
        raise GeometryError(
            f"{image_id}: {keyword} differs between slices ({values}); one grid needs one value: "
            "export one reconstruction"
        )


def _regular_step_mm(positions: FloatArray, axes: FloatArray, image_id: str) -> float:
    """Return the mean step between `positions` `(n, 3)`, which are sorted along `axes[2]`."""
    n = len(positions)
    along = positions @ axes[2]
    _require_even_steps(along, image_id)
    span = (positions[-1] - positions[0]) @ axes.T
    sideways = float(np.hypot(span[0], span[1]))
    tilt_deg = float(np.degrees(np.arctan2(sideways, span[2])))
    if tilt_deg > TILT_TOLERANCE_DEG:
        axis = "rows (x)" if abs(span[0]) > abs(span[1]) else "columns (y)"
        raise GeometryError(
            f"{image_id}: the gantry was tilted by {tilt_deg:.1f} degrees: each slice is shifted by "
            f"{sideways / (n - 1):.2f} mm along its {axis}; resample the series onto an upright grid"
        )
    line = positions[0] + np.linspace(0, 1, n)[:, None] * (positions[-1] - positions[0])
    sideways_mm = np.linalg.norm((positions - line) @ axes[:2].T, axis=1)
    worst = int(sideways_mm.argmax())
    if sideways_mm[worst] > SIDEWAYS_TOLERANCE_MM:
        raise GeometryError(
            f"{image_id}: slice {worst + 1} of {n} is shifted sideways by {sideways_mm[worst]:.2f} mm; "
            "export one reconstruction"
        )
    return float((along[-1] - along[0]) / (n - 1))


def _require_even_steps(along: FloatArray, image_id: str) -> None:
    """Raise unless the positions `along` the normal, in mm and ascending, are evenly spaced."""
    n, steps = len(along), np.diff(along)
    duplicates = np.flatnonzero(steps < STEP_TOLERANCE_MM)
    if duplicates.size:
        i = int(duplicates[0])
        raise GeometryError(
            f"{image_id}: slices {i + 1} and {i + 2} of {n} lie at the same position, {along[i]:.2f} mm "
            f"along the normal ({duplicates.size} such pairs): duplicates, or several time points; keep one"
        )
    common = float(np.median(steps))
    tolerance = max(STEP_TOLERANCE_MM, STEP_TOLERANCE * common)
    odd = np.flatnonzero(np.abs(steps - common) > tolerance)
    times = np.rint(steps / common).astype(int)
    gaps = [
        i for i in odd if times[i] > 1 and abs(steps[i] - times[i] * common) <= times[i] * tolerance
    ]
    if len(gaps) and len(gaps) == len(odd):
        missing = int(sum(times[i] - 1 for i in gaps))
        raise GeometryError(
            f"{image_id}: {missing} slice{'s' * (missing > 1)} missing after {along[gaps[0]]:.2f} mm along "
            f"the normal (slice {gaps[0] + 1} of {n}), steps are {common:.2f} mm; export the series again"
        )
    drift = np.abs(along - np.linspace(along[0], along[-1], n))
    if odd.size or drift.max() > LATTICE_TOLERANCE * common:
        i = int(odd[0]) if odd.size else min(int(drift.argmax()), n - 2)
        raise GeometryError(
            f"{image_id}: uneven slices: {steps[i]:.2f} mm between slice {i + 1} and {i + 2} of {n}, "
            f"elsewhere {common:.2f} mm; resample the series, or export it with one slice distance"
        )


def _pixels_hu(header: FileDataset, image_id: str) -> "np.ndarray[Any, np.dtype[Any]]":
    """Return one slice `(Y, X)` in HU, with padding at -1024; any transfer syntax that GDCM decodes."""
    slope = _numbers(header, "RescaleSlope", 1, image_id)[0]
    intercept = _numbers(header, "RescaleIntercept", 1, image_id)[0]
    try:
        image = sitk.ReadImage(str(header.filename), imageIO="GDCMImageIO")
    except RuntimeError as error:
        syntax = pydicom.uid.UID(str(header.file_meta.get("TransferSyntaxUID", "unknown"))).name
        raise ScanError(
            f"{image_id}: the pixels of {_name(header)} ({syntax}) cannot be decoded: truncated, or an unusual "
            "compression; export the series again"
        ) from error
    slice_yx: np.ndarray[Any, np.dtype[Any]] = np.asarray(sitk.GetArrayFromImage(image))[0]
    if "PixelPaddingValue" not in header:
        return slice_yx
    keywords = [k for k in ("PixelPaddingValue", "PixelPaddingRangeLimit") if k in header]
    padding = [_numbers(header, keyword, 1, image_id)[0] for keyword in keywords]
    if _text(header, "PixelRepresentation") == "1":  # some writers store a signed value with VR US
        padding = [v - 65536 if v > 32767 else v for v in padding]
    bounds_hu = [v * slope + intercept for v in padding]
    is_padding = slice_yx > min(bounds_hu) - slope / 2
    is_padding &= slice_yx < max(bounds_hu) + slope / 2
    return np.where(is_padding, np.asarray(PADDING_HU, slice_yx.dtype), slice_yx)


def _require_shape(found: tuple[int, ...], grid: Grid, header: FileDataset, image_id: str) -> None:
    if found != grid.shape_vox[:2]:
        raise ScanError(
            f"{image_id}: the pixels of {_name(header)} are {found}, {grid.shape_vox[:2]} by its header; "
            "export the series again"
        )


def _name(header: Dataset) -> str:
    """Return the name of a slice for messages: its file name, or its SOPInstanceUID in the PACS."""
    file = getattr(header, "filename", None)
    return Path(str(file)).name if file else f"instance {_text(header, 'SOPInstanceUID')}"


def _text(header: Dataset, keyword: str) -> str:
    try:
        return str(header.get(keyword, "") or "")
    except PARSING_ERRORS:
        return ""


def _numbers(header: Dataset, keyword: str, size: int, image_id: str) -> list[float]:
    try:
        value = header[keyword].value
        numbers = [float(v) for v in ([value] if isinstance(value, str | float | int) else value)]
    except PARSING_ERRORS:
        numbers = []
    is_usable = len(numbers) == size and bool(np.isfinite(numbers).all())
    if not is_usable or (keyword in _POSITIVE and min(numbers) <= 0):
        raise ScanError(
            f"{image_id}: {_name(header)} has no usable {keyword} ({size} finite "
            f"{'positive ' * (keyword in _POSITIVE)}numbers expected); export the series again"
        )
    return numbers
