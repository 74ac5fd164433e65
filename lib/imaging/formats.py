"""Volume files with a grid (NIfTI, NRRD, MHA), and names of files in a case folder.

NIfTI is read and written with nibabel: its writer notices a full disk, its reader returns both transforms.
NRRD and MHA are read with ITK, after a check of the header fields that ITK does not check itself.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from lib.errors import GeometryError, LabelError, ScanError, StorageError
from lib.imaging.geometry import Grid, ras_to_lps, require_right_angles, to_sitk
from lib.imaging.quantities import ShapeVox
from lib.imaging.volume_headers import (
    MAX_HEADER_BYTES,
    MAX_VOXELS,
    VoxelLayout,
    mha_layout,
    nrrd_layout,
)
from lib.imaging.voxel_data import fill
from lib.storage.atomic_files import replacing
from lib.storage.storage_errors import storing

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Suffixes of files that hold one volume with its grid; detached headers (.nhdr, .mhd) are not read."""

CT_STEMS = ("ct", "img", "image")
"""File names of the CT in a case folder (OpenKBP: `pt_1/ct.nii.gz`, PDDCA: `img.nrrd`)."""

LABEL_STEMS = ("label", "labels", "seg", "segmentation")
"""File names of the label volume in a case folder (OpenKBP: `pt_1/label.nii.gz`)."""

FORMS_TOLERANCE_MM = 1.0
"""Largest distance between a corner by NIfTI's sform and by its qform, in mm.

Rounding alone moves a qform by 0.2 mm if the rotation is close to 180 degrees (32-bit quaternions).
"""

MAX_NIFTI_OFFSET_BYTES = 16 * 2**20
"""Largest size of a NIfTI header with its extensions, in bytes; extensions of a few MiB exist."""
_NIFTI2_HEADER_BYTES = 540
_NIFTI_SIGNATURES = tuple(
    struct.pack(f"{order}i", size) for order in "<>" for size in (348, _NIFTI2_HEADER_BYTES)
)
"""First four bytes of NIfTI-1 and NIfTI-2 files: the size of the header (`sizeof_hdr`)."""

_DAMAGE = (RuntimeError, OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError,
                   KeyError, OverflowError, MemoryError)  # fmt: skip
"""Exceptions that SimpleITK, nibabel and gzip raise on damaged files."""

_NOT_WRITTEN = "so it was not written; everything that was there is untouched"

Array = np.ndarray[Any, np.dtype[Any]]


def read_volume(
    path: Path,
    case: str,
    *,
    require: Callable[[Grid], None] | None = None,
) -> tuple[Array, Grid]:
    """Return the only 3D volume in a file, `(X, Y, Z)`, with unchanged values.

    Args:
        path: The file.
        case: For messages.
        require: Called with the grid of the header before any voxel is unpacked into memory; raises to refuse
            the grid.

    Raises:
        ScanError: If the file is damaged, or holds anything else; `GeometryError` if it has no position.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise ScanError(
            f"{case}: {path.name} is not one of {', '.join(SCAN_SUFFIXES)}; convert it, or give the folder of "
            "a DICOM series rather than one of its slices"
        )
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
        if not start:
            raise ScanError(f"{case}: {path.name} is empty (0 bytes); copy it again")
        if start.lstrip()[:1] == b"<":
            raise ScanError(
                f"{case}: {path.name} holds a web page, not an image; download it again"
            )
        if suffix.startswith(".nii"):
            array, grid = _read_nifti(path, case, require)
        else:
            layout = (nrrd_layout if suffix == ".nrrd" else mha_layout)(start, case)
            array, grid = _read_itk(path, layout, case, require)
    except (ScanError, MemoryError):
        raise
    except EOFError as error:
        raise ScanError(f"{case}: {path.name} is truncated; copy it again") from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno:
            raise ScanError(f"{case}: {path.name} cannot be read ({error.strerror})") from error
        raise ScanError(
            f"{case}: {path.name} is not a readable {suffix} file, or is damaged or truncated: "
            f"{_reason(error).replace(str(path), path.name)}"
        ) from error
    require_right_angles(case, grid)
    return array, grid


def write_volume(path: Path, array: Array, grid: Grid) -> None:
    """Write `array` `(X, Y, Z)` on `grid`, atomically; compressed unless `path` ends in `.nii`.

    Raises:
        LabelError: If the suffix is none of `SCAN_SUFFIXES`.
        StorageError: If the file cannot be written; StorageFullError if the disk is full.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise LabelError(
            f"{path.name}: cannot be written; expected one of {', '.join(SCAN_SUFFIXES)}"
        )
    try:
        with storing(path.name, _NOT_WRITTEN), replacing(path) as beside:
            if suffix.startswith(".nii"):
                _write_nifti(beside, array, grid)
            else:
                sitk.WriteImage(to_sitk(array, grid), str(beside), useCompression=True)
    except StorageError:
        raise
    except _DAMAGE as error:
        raise StorageError(
            f"{path.name}: {_reason(error)}, {_NOT_WRITTEN}; is the disk full?"
        ) from error


def suffix_of(file: Path | str) -> str | None:
    """Return the one of `SCAN_SUFFIXES` that a file name ends in, in any case; None if there is none.

    The result is in lower case: of `B.NII.GZ` it is `.nii.gz`, and `stem_of` gives `B`.
    """
    name = file if isinstance(file, str) else file.name
    return next((suffix for suffix in SCAN_SUFFIXES if name.lower().endswith(suffix)), None)


def stem_of(file: Path | str) -> str:
    """Return a file name without its volume suffix."""
    name = file if isinstance(file, str) else file.name
    return name[: len(name) - len(suffix_of(name) or "")]


def label_stem_of(file: Path | str) -> str:
    """Return the file name of a label without its suffix; `.seg.nrrd` of 3D Slicer is one suffix, too."""
    stem = stem_of(file)
    is_slicer = suffix_of(file) == ".nrrd" and stem.lower().endswith(".seg")
    return stem[: -len(".seg")] if is_slicer else stem


def require_signature(path: Path, case: str) -> None:
    """Raise ScanError unless a file begins as files of its suffix do.

    A name alone does not make a scan: a link in a studies folder may lead to any file of the machine, which
    must not be sent to clients. Only the beginning is read; the file may be damaged after it.

    Args:
        path: File with one of `SCAN_SUFFIXES`.
        case: For messages.

    Raises:
        ScanError: If the file is something else.
        OSError: If it cannot be read.
    """
    suffix = suffix_of(path)
    with path.open("rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    if suffix == ".nii.gz":
        # Any number of bytes may be missing at the end of `start`, so it is not unpacked with gzip.
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS + 16)
        try:
            start = unpacker.decompress(start, _NIFTI2_HEADER_BYTES)
        except zlib.error:
            start = b""
    if suffix in {".nii", ".nii.gz"}:
        is_scan = start[:4] in _NIFTI_SIGNATURES
    else:
        is_scan = start.startswith(b"NRRD") if suffix == ".nrrd" else b"ElementDataFile" in start
    if not is_scan:
        raise ScanError(
            f"{case}: {path.name} does not begin as a {suffix} file; it is damaged, or no scan: copy it again"
        )


def scan_files(folder: Path) -> list[Path]:
    """Return the volume files directly in `folder`, sorted; hidden files are left out."""
    files = (p for p in folder.iterdir() if suffix_of(p) and not p.name.startswith("."))
    return sorted(p for p in files if p.is_file())


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _require_3d(case: str, shape: tuple[int, ...], *, is_scalar: bool) -> tuple[int, int, int]:
    """Return `shape` without trailing dimensions of 1, if the rest is one 3D volume."""
    if not is_scalar:
        raise ScanError(
            f"{case}: the voxels are colours, vectors or complex numbers; one number each expected"
        )
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1 or np.prod(shape, dtype=float) > MAX_VOXELS:
        sides = " x ".join(map(str, shape))
        raise ScanError(
            f"{case}: {len(shape)} dimensions, {sides} voxels; one 3D volume of at most {MAX_VOXELS} voxels "
            "expected"
        )
    return (shape[0], shape[1], shape[2])


def _read_nifti(
    path: Path, case: str, require: Callable[[Grid], None] | None
) -> tuple[Array, Grid]:
    _check_nifti_offset(path, case)
    image = nib.load(path, mmap=False)
    if not isinstance(image, nib.Nifti1Image):
        raise ScanError(f"{case}: {path.name} is not NIfTI but {type(image).__name__}; convert it")
    header: Any = image.header
    is_scalar = header.get_data_dtype().kind in "iuf"
    shape = _require_3d(case, tuple(int(n) for n in header.get_data_shape()), is_scalar=is_scalar)
    grid = _nifti_grid(header, shape, case)
    if require is not None:
        require(grid)
    return _nifti_voxels(path, image.dataobj, shape, case), grid


def _nifti_voxels(path: Path, stored: Any, shape: ShapeVox, case: str) -> Array:
    """Return the voxels that nibabel's array proxy `stored` describes, scaled by slope and intercept."""
    layout = VoxelLayout(
        sizes=shape,
        dtype=stored.dtype,
        encoding="deflated" if path.name.lower().endswith(".gz") else "raw",
        offset=0,
        skipped_bytes=int(stored.offset),
    )
    dtype = layout.dtype.newbyteorder("=")
    is_scaled = (stored.slope, stored.inter) != (1.0, 0.0)
    array: Array = np.zeros(shape, dtype, order="F")
    with path.open("rb") as file:
        fill(array, layout, file, case)
    if not is_scaled:
        return array
    scaled: Array | None = None
    for z in range(shape[2]):
        values = apply_read_scaling(array[:, :, z], stored.slope, stored.inter)
        if scaled is None:
            scaled = np.zeros(shape, values.dtype, order="F")
        scaled[:, :, z] = values
    return array if scaled is None else scaled


def _check_nifti_offset(path: Path, case: str) -> None:
    """Raise if the extensions of a NIfTI header are too large.

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
    """Return the grid that ITK reads; raise if the header is ambiguous."""
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
            "set both to the correct one"
        )
    return by_sform if sform_code == 1 else by_qform


def _write_nifti(path: Path, array: Array, grid: Grid) -> None:
    image: Any = nib.Nifti1Image(array, grid.affine_ras)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine_ras, code=1)
    image.set_qform(grid.affine_ras, code=1)
    nib.save(image, path)


def _read_itk(
    path: Path,
    layout: VoxelLayout,
    case: str,
    require: Callable[[Grid], None] | None,
) -> tuple[Array, Grid]:
    with path.open("rb") as file:
        grid = _itk_grid(file, layout, case)
        if require is not None:
            require(grid)
        array: Array = np.zeros(grid.shape_vox, layout.dtype.newbyteorder("="), order="F")
        fill(array, layout, file, case)
    return array, grid


def _itk_grid(file: BinaryIO, layout: VoxelLayout, case: str) -> Grid:
    """Return the grid that ITK finds in the header of an NRRD or MetaImage file."""
    is_nrrd = file.read(4) == b"NRRD"
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    # By this name ITK finds no similarly named file in the folder, and no other file that the header names.
    reader.SetFileName(f"/proc/self/fd/{file.fileno()}")
    reader.ReadImageInformation()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    is_scalar = reader.GetNumberOfComponents() == 1 and "complex" not in kind
    sizes = tuple(reader.GetSize())
    shape = _require_3d(case, sizes, is_scalar=is_scalar)
    if math.prod(sizes) != math.prod(layout.sizes):
        raise ScanError(
            f"{case}: ITK reads {sizes} voxels, the header states {layout.sizes}; export it again"
        )
    if reader.GetDimension() == 3:
        return Grid.of_sitk(reader)
    count = reader.GetDimension()
    affine = np.eye(4)
    directions = np.array(reader.GetDirection()).reshape(count, count)[:3, :3]
    affine[:3, :3] = directions * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    return Grid.from_affine(shape, ras_to_lps(affine))
