"""Reading a CT so that its geometry cannot be wrong, and reading and writing labels on its grid.

The grid that comes back is the input's own, voxel for voxel; nothing is turned or resampled. What does not
say where its voxels lie is refused.

- NIfTI goes through nibabel: ITK, asked for `s.nii.gz`, returns `s.nii` where both are there, reads a file
  without orientation as if it had one, and loses data without a word when the disk is full. Of sform and
  qform the one is taken that ITK, and with it 3D Slicer, takes; the two may not differ by over 1 mm.
- NRRD and MetaImage go through ITK, under another name in a folder of their own, after a look at their
  header: ITK ignores the spaces it does not know, and would follow a header to any other file.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lib.dicom.series import PADDING_HU, holds_dicom, read_series
from lib.errors import GeometryError, LabelError, ScanError
from lib.files import replacing
from lib.geometry import Grid, from_sitk, require_right_angles, require_same_grid, to_sitk
from lib.units import LabelArray
from lib.volumes import CtVolume, LabelVolume, as_hu

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Files that hold one volume with its geometry; detached headers (.nhdr, .mhd) are not read."""

MIN_SIDE_VOX = 8
"""No CT of a patient is smaller along any axis; a projection or a localizer is."""

MAX_VOXELS = 2**30
"""Beyond any CT (1024 x 1024 x 1024): a damaged header, or a file made to fill the memory."""

FORMS_TOLERANCE_MM = 1.0
"""NIfTI's sform and qform may differ by this much at a corner.

Rounding alone moves a qform by 0.2 mm where the rotation is close to 180 degrees (32-bit quaternions).
"""

NO_AIR_ABOVE_HU = -200
"""Any CT of a patient has air below this; where nothing is, the values are not HU."""

_CASE_STEMS = ("ct", "img", "image")
"""File names that say nothing: the folder names the case (OpenKBP: `pt_1/ct.nii.gz`, PDDCA: `img.nrrd`)."""

_NRRD_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras",
                "left-anterior-superior", "las")  # fmt: skip
_HEADER_BYTES = 2**20

_READING_ERRORS = (RuntimeError, OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError,
                   KeyError, OverflowError, MemoryError)  # fmt: skip
"""What SimpleITK, nibabel and gzip raise at damaged files."""

Array = np.ndarray[Any, np.dtype[Any]]


def read_ct(path: Path, *, image_id: str | None = None) -> CtVolume:
    """Return the CT in a file or in the folder of a DICOM series, named `scan_name(path)` by default.

    Values below -1024 HU, which scanners write outside their field of view, become -1024.

    Raises:
        ScanError: If there is not exactly one readable 3D volume that can be a CT in HU.
        GeometryError: If it does not say where its voxels lie, or they form no regular grid.
    """
    case = image_id or scan_name(path)
    ct = (
        read_series(path, image_id=case)
        if path.is_dir()
        else CtVolume(case, *_read_file(path, case))
    )
    if min(ct.grid.shape_vox) < MIN_SIDE_VOX:
        raise ScanError(
            f"{case}: {ct.grid} is a 2D image or localizer; at least {MIN_SIDE_VOX} slices of "
            f"{MIN_SIDE_VOX} x {MIN_SIDE_VOX} voxels expected"
        )
    array = ct.array_hu
    if not np.isfinite(array).all():
        raise ScanError(f"{case}: some voxels are NaN or infinite; export the CT again")
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise ScanError(f"{case}: every voxel is {low:g}; the image is empty")
    if not ((array >= PADDING_HU) & (array < NO_AIR_ABOVE_HU)).any():
        raise ScanError(
            f"{case}: values run from {low:g} to {high:g} and none lies between {PADDING_HU} and "
            f"{NO_AIR_ABOVE_HU}, where air is: not a CT in HU; the rescale slope and intercept may be missing"
        )
    return CtVolume(case, as_hu(np.maximum(array, np.asarray(PADDING_HU, array.dtype))), ct.grid)


def read_label(path: Path, *, image_id: str, image_grid: Grid | None) -> tuple[LabelArray, Grid]:
    """Return the label volume in a file, and its grid; an empty label is one of zeros.

    Args:
        path: A file with one of `SCAN_SUFFIXES`.
        image_id: The image that it was drawn on.
        image_grid: That image's grid; None where there is none to compare with.

    Raises:
        LabelError: If the file holds anything but one 3D volume of whole numbers from 0 to 255.
        GeometryError: If its grid is not the image's.
    """
    try:
        array, grid = _read_file(path, image_id)
    except GeometryError:
        raise
    except ScanError as error:
        raise LabelError(str(error)) from error
    if np.issubdtype(array.dtype, np.floating) and not np.array_equal(array, np.rint(array)):
        raise LabelError(
            f"{image_id}: the label holds NaN or fractions; whole numbers expected: resample labels with "
            "nearest neighbour, and send labels rather than probabilities"
        )
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise LabelError(
            f"{image_id}: label values run from {low:g} to {high:g}; 0 to 255 expected: is it an image?"
        )
    if image_grid is not None:
        require_same_grid(image_id, label=grid, image=image_grid)
    return array.astype(np.uint8), grid


def write_label(path: Path, label: LabelVolume, *, dtype: type[np.integer[Any]] = np.uint8) -> None:
    """Write `label` to `path`, atomically; compressed unless `path` ends in `.nii`.

    Raises:
        LabelError: If the suffix is none of `SCAN_SUFFIXES`, a value does not fit `dtype`, or the disk is full.
    """
    array = label.array.astype(dtype)
    if not np.array_equal(array, label.array):
        raise LabelError(
            f"{path.name}: values up to {label.array.max()} do not fit {dtype.__name__}"
        )
    _write_volume(path, array, label.grid)


def write_ct(path: Path, ct: CtVolume) -> None:
    """Write `ct` to `path` as `write_label` writes labels.

    Raises:
        LabelError: If the suffix is none of `SCAN_SUFFIXES`, or the disk is full.
    """
    _write_volume(path, ct.array_hu, ct.grid)


def _write_volume(path: Path, array: Array, grid: Grid) -> None:
    suffix = _suffix(path)
    if suffix is None:
        raise LabelError(
            f"{path.name}: cannot be written; expected one of {', '.join(SCAN_SUFFIXES)}"
        )
    try:
        with replacing(path) as beside:
            if suffix.startswith(".nii"):
                _write_nifti(beside, array, grid)
            else:
                sitk.WriteImage(to_sitk(array, grid), str(beside), useCompression=True)
    except _READING_ERRORS as error:
        raise LabelError(
            f"{path.name}: could not be written ({_reason(error)}); is the disk full?"
        ) from error


def scan_name(path: Path) -> str:
    """Return what a scan is called: its folder for DICOM and for `ct.*`, `img.*`, `image.*`, else its stem."""
    path = path.absolute()
    suffix = _suffix(path)
    if suffix is None or path.is_dir():
        return path.name
    stem = path.name[: -len(suffix)]
    return path.parent.name if stem.lower() in _CASE_STEMS else stem


def find_scans(folder: Path) -> list[Path]:
    """Return the scans in `folder`, sorted: files and folders that `read_ct` reads.

    A file, a folder that holds DICOM files, and a folder that holds a `ct.*`, `img.*` or `image.*` file are
    one scan. Any other folder gives its scan files, and those of its folders that are one scan.

    Raises:
        ScanError: If there are none.
    """
    if _suffix(folder) and folder.is_file():
        return [folder]
    try:
        scans = list(_scans_of(folder))
        if not scans:
            inner = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
            scans = [p for p in inner if p.is_file() and _suffix(p)]
            scans += [s for p in inner if p.is_dir() for s in _scans_of(p, levels=2)]
    except OSError as error:
        raise ScanError(
            f"{folder}: cannot be read as a folder of scans: {error.strerror}"
        ) from error
    if not scans:
        raise ScanError(
            f"{folder}: no scans; expected DICOM files, {', '.join(SCAN_SUFFIXES)} files, or a folder of such"
        )
    return sorted(scans)


def _scans_of(folder: Path, *, levels: int = 1) -> Iterator[Path]:
    """Yield `folder` if it is a DICOM series, at most `levels` folders deep, or else its CT files."""
    inner = [p for p in folder.iterdir() if not p.name.startswith(".")]
    if holds_dicom(folder) or (levels > 1 and any(holds_dicom(p) for p in inner if p.is_dir())):
        yield folder
        return
    yield from (p for p in inner if p.is_file() and _suffix(p) and _stem(p) in _CASE_STEMS)


def _suffix(path: Path) -> str | None:
    return next((s for s in SCAN_SUFFIXES if path.name.lower().endswith(s)), None)


def _stem(path: Path) -> str:
    return path.name[: -len(_suffix(path) or "")].lower()


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _read_file(path: Path, case: str) -> tuple[Array, Grid]:
    """Return the one 3D volume in a file, `(X, Y, Z)`, its values as they are."""
    suffix = _suffix(path)
    if suffix is None:
        raise ScanError(
            f"{case}: {path.name} is none of {', '.join(SCAN_SUFFIXES)}; convert it, or give the folder of a "
            "DICOM series rather than one of its slices"
        )
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
        if not start:
            raise ScanError(f"{case}: {path.name} is empty (0 bytes); copy it again")
        if start.lstrip()[:1] == b"<":
            raise ScanError(
                f"{case}: {path.name} holds a web page, not an image; download it again"
            )
        if suffix.startswith(".nii"):
            array, grid = _read_nifti(path, case)
        else:
            (_check_nrrd if suffix == ".nrrd" else _check_mha)(start, case)
            array, grid = _read_itk(path, suffix, case)
    except ScanError:
        raise
    except EOFError as error:
        raise ScanError(f"{case}: {path.name} is cut short; copy it again") from error
    except _READING_ERRORS as error:
        raise ScanError(
            f"{case}: {path.name} is no readable {suffix} file, or is damaged or cut short: {_reason(error)}"
        ) from error
    require_right_angles(case, grid)
    return array, grid


def _require_3d(case: str, shape: tuple[int, ...], *, is_scalar: bool) -> tuple[int, int, int]:
    """Return `shape` without dimensions of 1 at its end."""
    if not is_scalar:
        raise ScanError(
            f"{case}: the voxels are colours, vectors or complex numbers; one number each expected"
        )
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1 or np.prod(shape, dtype=float) > MAX_VOXELS:
        sides = " x ".join(map(str, shape))
        raise ScanError(f"{case}: {len(shape)} dimensions, {sides} voxels; one 3D volume expected")
    return (shape[0], shape[1], shape[2])


def _read_nifti(path: Path, case: str) -> tuple[Array, Grid]:
    image = nib.load(path, mmap=False)
    if not isinstance(image, nib.Nifti1Image):
        raise ScanError(
            f"{case}: {path.name} is no NIfTI file but {type(image).__name__}; convert it"
        )
    header: Any = image.header
    is_scalar = header.get_data_dtype().kind in "iuf"
    shape = _require_3d(case, tuple(int(n) for n in header.get_data_shape()), is_scalar=is_scalar)
    grid = _nifti_grid(header, shape, case)
    return np.asanyarray(image.dataobj).reshape(shape), grid


def _nifti_grid(header: Any, shape: tuple[int, int, int], case: str) -> Grid:
    """Return the grid that ITK reads, where the header leaves no doubt about it."""
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise GeometryError(f"{case}: lengths are in {unit}; mm expected: convert the file")
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    if not (sform_code > 0 or qform_code > 0):
        raise GeometryError(
            f"{case}: the NIfTI file has no orientation (sform and qform codes are 0), so that left and right "
            "are unknown; convert the CT from DICOM again"
        )
    if not qform_code > 0:
        return Grid.from_affine(shape, sform)
    by_qform = Grid.from_affine(shape, qform)
    if not sform_code > 0:
        return by_qform
    by_sform = Grid.from_affine(shape, sform)
    apart_mm = np.linalg.norm(by_sform.corners_ras() - by_qform.corners_ras(), axis=1).max()
    if not apart_mm <= FORMS_TOLERANCE_MM:
        raise GeometryError(
            f"{case}: sform and qform place a corner {apart_mm:.1f} mm apart, so that viewers would disagree; "
            "set both to the one that is right"
        )
    return by_sform if sform_code == 1 else by_qform


def _write_nifti(path: Path, array: Array, grid: Grid) -> None:
    image: Any = nib.Nifti1Image(array, grid.affine_ras)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine_ras, code=1)
    image.set_qform(grid.affine_ras, code=1)
    nib.save(image, path)


def _check_nrrd(start: bytes, case: str) -> None:
    """Do nothing where an NRRD header states an anatomical space in mm, and holds its own data."""
    head, end, _ = start.replace(b"\r\n", b"\n").partition(b"\n\n")
    lines = (line.partition(":") for line in head.decode("latin-1").lower().splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines if not value.startswith("=")}
    if "data file" in fields or "datafile" in fields or not end:
        raise ScanError(f"{case}: the NRRD file does not hold its own data; save it as one file")
    space = fields.get("space", "none")
    if space not in _NRRD_SPACES:
        raise GeometryError(
            f"{case}: the NRRD file has no orientation (space: {space}), so that left and right are unknown; "
            "left-posterior-superior expected: export it again with its orientation"
        )
    units = fields.get("space units", "")
    if set(units.split('"')[1::2]) - {"mm", ""}:
        raise GeometryError(f"{case}: lengths are in {units}; mm expected: convert the file")


def _check_mha(start: bytes, case: str) -> None:
    """Do nothing where a MetaImage header states directions and spacing, and holds its own data."""
    fields: dict[str, str] = {}
    for line in start.decode("latin-1").split("\n"):
        key, _, value = line.partition("=")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    if fields.get("ElementDataFile") != "LOCAL":
        raise ScanError(
            f"{case}: the MetaImage file does not hold its own data; save it as one file"
        )
    if "ElementSpacing" not in fields or not fields.keys() & {
        "TransformMatrix",
        "Orientation",
        "Rotation",
    }:
        raise GeometryError(
            f"{case}: the MetaImage file has no orientation (TransformMatrix, ElementSpacing), so that left "
            "and right are unknown; export it again with its orientation"
        )


def _read_itk(path: Path, suffix: str, case: str) -> tuple[Array, Grid]:
    with TemporaryDirectory(prefix="organnet-") as folder:
        alone = Path(folder) / f"volume{suffix}"
        alone.symlink_to(path.resolve())
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NrrdImageIO" if suffix == ".nrrd" else "MetaImageIO")
        reader.SetFileName(str(alone))
        reader.ReadImageInformation()
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        is_scalar = reader.GetNumberOfComponents() == 1 and "complex" not in kind
        _require_3d(case, tuple(reader.GetSize()), is_scalar=is_scalar)
        image = reader.Execute()
    while image.GetDimension() > 3:
        image = image[..., 0]
    return from_sitk(image), Grid.of_sitk(image)
