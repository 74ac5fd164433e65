"""Files that hold one volume with its grid: NIfTI, NRRD, MHA; what is in them is not asked here.

NIfTI goes through nibabel, whose writer notices a full disk and whose reader shows both transforms; NRRD and
MHA through ITK, after a look at what ITK takes for granted.
"""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lib.errors import GeometryError, LabelError, ScanError, StorageFullError
from lib.imaging.geometry import Grid, from_sitk, require_right_angles, to_sitk
from lib.storage.atomic_files import is_disk_full, replacing

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Files that hold one volume with its geometry; detached headers (.nhdr, .mhd) are not read."""

MAX_VOXELS = 2**30
"""Beyond any CT (1024 x 1024 x 1024): a damaged header, or a file made to fill the memory."""

FORMS_TOLERANCE_MM = 1.0
"""NIfTI's sform and qform may differ by this much at a corner.

Rounding alone moves a qform by 0.2 mm where the rotation is close to 180 degrees (32-bit quaternions).
"""

MAX_NIFTI_OFFSET_BYTES = 16 * 2**20
"""Header extensions hold notes; those of a few MiB have been seen."""
_NIFTI2_HEADER_BYTES = 540

_NRRD_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras",
                "left-anterior-superior", "las")  # fmt: skip
_HEADER_BYTES = 2**20

_DAMAGE = (RuntimeError, OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError,
                   KeyError, OverflowError, MemoryError)  # fmt: skip
"""What SimpleITK, nibabel and gzip raise at damaged files."""

Array = np.ndarray[Any, np.dtype[Any]]


def read_volume(
    path: Path, case: str, *, require: Callable[[Grid], None] | None = None
) -> tuple[Array, Grid]:
    """Return the one 3D volume in a file, `(X, Y, Z)`, its values as they are.

    Args:
        path: The file.
        case: For messages.
        require: Asked with the grid that the header states, before any voxel is unpacked into memory; it
            raises where that grid is not wanted.

    Raises:
        ScanError: If the file is damaged, or holds anything else; `GeometryError` if it is placed nowhere.
    """
    suffix = suffix_of(path)
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
            array, grid = _read_nifti(path, case, require)
        else:
            (_check_nrrd if suffix == ".nrrd" else _check_mha)(start, case)
            array, grid = _read_itk(path, suffix, case, require)
    except ScanError:
        raise
    except EOFError as error:
        raise ScanError(f"{case}: {path.name} is cut short; copy it again") from error
    except _DAMAGE as error:
        raise ScanError(
            f"{case}: {path.name} is no readable {suffix} file, or is damaged or cut short: {_reason(error)}"
        ) from error
    require_right_angles(case, grid)
    return array, grid


def write_volume(path: Path, array: Array, grid: Grid) -> None:
    """Write `array` `(X, Y, Z)` on `grid`, atomically; compressed unless `path` ends in `.nii`.

    Raises:
        LabelError: If the suffix is none of `SCAN_SUFFIXES`, or the file cannot be written.
        StorageFullError: If the disk is full.
    """
    suffix = suffix_of(path)
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
    except _DAMAGE as error:
        if is_disk_full(error):
            raise StorageFullError(
                f"{path.name}: could not be written, the disk is full; everything that was there is untouched"
            ) from error
        raise LabelError(
            f"{path.name}: could not be written ({_reason(error)}); is the disk full?"
        ) from error


def suffix_of(path: Path) -> str | None:
    """Return which of `SCAN_SUFFIXES` the file's name ends in, None where it ends in none."""
    return next((s for s in SCAN_SUFFIXES if path.name.lower().endswith(s)), None)


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


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


def _read_nifti(
    path: Path, case: str, require: Callable[[Grid], None] | None
) -> tuple[Array, Grid]:
    _check_nifti_offset(path, case)
    image = nib.load(path, mmap=False)
    if not isinstance(image, nib.Nifti1Image):
        raise ScanError(
            f"{case}: {path.name} is no NIfTI file but {type(image).__name__}; convert it"
        )
    header: Any = image.header
    is_scalar = header.get_data_dtype().kind in "iuf"
    shape = _require_3d(case, tuple(int(n) for n in header.get_data_shape()), is_scalar=is_scalar)
    grid = _nifti_grid(header, shape, case)
    if require is not None:
        require(grid)
    return np.asanyarray(image.dataobj).reshape(shape), grid


def _check_nifti_offset(path: Path, case: str) -> None:
    """Do nothing where a NIfTI header's extensions are of a size that can be read.

    nibabel reads everything before the voxels into memory; in a small `.nii.gz` that can be gigabytes.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        start = file.read(_NIFTI2_HEADER_BYTES)
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", start.ljust(4, b"\0"))
        form = {348: (f"{order}f", 108), 540: (f"{order}q", 168)}.get(size)
        if form is not None and len(start) >= size:
            (offset,) = struct.unpack_from(form[0], start, form[1])
            if not offset <= MAX_NIFTI_OFFSET_BYTES:
                raise ScanError(
                    f"{case}: the NIfTI header has {offset / 2**20:.0f} MiB before the voxels, "
                    f"{MAX_NIFTI_OFFSET_BYTES // 2**20} MiB at most expected: the file is damaged"
                )


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


def _read_itk(
    path: Path, suffix: str, case: str, require: Callable[[Grid], None] | None
) -> tuple[Array, Grid]:
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
        if require is not None and reader.GetDimension() == 3:
            require(Grid.of_sitk(reader))
        image = reader.Execute()
    while image.GetDimension() > 3:
        image = image[..., 0]
    return from_sitk(image), Grid.of_sitk(image)
