"""Reading of volume files with a grid (NIfTI, NRRD, MHA): first the header, then the voxels.

Headers of NIfTI are read with nibabel, which returns both transforms; those of NRRD and MHA with ITK, after a
check of the fields that ITK does not check itself. Voxels are read by `lib.imaging.voxel_data`.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.volumeutils import apply_read_scaling

from lib.errors import GeometryError, ScanError
from lib.imaging.formats import (
    DAMAGE,
    NIFTI2_HEADER_BYTES,
    SCAN_SUFFIXES,
    reason_of,
    suffix_of,
)
from lib.imaging.geometry import Grid, ras_to_lps, require_right_angles
from lib.imaging.volume_headers import (
    MAX_HEADER_BYTES,
    MAX_VOXELS,
    VoxelLayout,
    mha_layout,
    nrrd_layout,
)
from lib.imaging.voxel_data import fill, require_possible_size, unpacked_start

FORMS_TOLERANCE_MM = 1.0
"""Largest distance between a corner by NIfTI's sform and by its qform, in mm.

Rounding alone moves a qform by 0.2 mm if the rotation is close to 180 degrees (32-bit quaternions).
"""

MAX_NIFTI_OFFSET_BYTES = 16 * 2**20
"""Largest size of a NIfTI header with its extensions, in bytes; extensions of a few MiB exist."""

Array = np.ndarray[Any, np.dtype[Any]]

_SAMPLE: bytes = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeHeader:
    """What the header of a volume file states."""

    grid: Grid
    layout: VoxelLayout
    scale: tuple[float, float] = (1.0, 0.0)
    """Slope and intercept that turn a stored number into a value."""

    def has_plain(self, dtype: "np.dtype[Any]") -> bool:
        """Return whether the values are stored as numbers of this type, be they compressed or not."""
        is_binary = self.layout.encoding in ("raw", "deflated")
        return is_binary and self.layout.dtype == dtype and self.scale == (1.0, 0.0)


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
    with opened(path, case) as file:
        header = read_volume_header(file, path, case)
        if require is not None:
            require(header.grid)
        return _voxels(file, header, case), header.grid


@contextmanager
def opened(path: Path, case: str) -> Iterator[BinaryIO]:
    """Yield an open volume file; what libraries raise because it is damaged becomes a ScanError.

    Args:
        path: The file.
        case: For messages.

    Raises:
        ScanError: If it is no volume file or cannot be read, if it changes within the context, or if the code
            there raises what damage causes.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise ScanError(
            f"{case}: {path.name} is not one of {', '.join(SCAN_SUFFIXES)}; convert it, or give the folder of "
            "a DICOM series rather than one of its slices"
        )
    try:
        with path.open("rb") as file:
            before = _state(os.fstat(file.fileno()))
            yield file
            if _state(path.stat()) != before:
                raise ScanError(f"{case}: {path.name} changed while it was read; read it again")
    except (ScanError, MemoryError):
        raise
    except EOFError as error:
        raise ScanError(f"{case}: {path.name} is truncated; copy it again") from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno:
            raise ScanError(f"{case}: {path.name} cannot be read ({error.strerror})") from error
        raise ScanError(
            f"{case}: {path.name} is not a readable {suffix} file, or is damaged or truncated: "
            f"{reason_of(error).replace(str(path), path.name)}"
        ) from error


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when another file takes the place of this one, or when it is written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_volume_header(file: BinaryIO, path: Path, case: str) -> VolumeHeader:
    """Return what the header of a volume file states.

    Args:
        file: The file, from `opened`.
        path: Its path.
        case: For messages.

    Raises:
        ScanError: If the file is damaged or too small, or does not hold one 3D volume.
        GeometryError: If it has no position.
    """
    suffix = suffix_of(path) or ""
    is_nifti = suffix.startswith(".nii")
    start = file.read(NIFTI2_HEADER_BYTES if is_nifti else MAX_HEADER_BYTES)
    if not start:
        raise ScanError(f"{case}: {path.name} is empty (0 bytes); copy it again")
    if start.lstrip()[:1] == b"<":
        raise ScanError(f"{case}: {path.name} holds a web page, not an image; download it again")
    if is_nifti:
        header = _nifti_header(file, path, case)
    else:
        layout = (nrrd_layout if suffix == ".nrrd" else mha_layout)(start, case)
        header = VolumeHeader(grid=_itk_grid(file, layout, case), layout=layout)
    require_right_angles(case, header.grid)
    require_possible_size(header.layout, file, case)
    return header


def read_sample_header() -> None:
    """Read a small header that is in memory; what reading uses is then loaded."""
    require_right_angles("", _nifti_header(BytesIO(_SAMPLE), Path("sample.nii"), "").grid)


def _voxels(file: BinaryIO, header: VolumeHeader, case: str) -> Array:
    """Return the voxels `(X, Y, Z)` of a file, scaled by slope and intercept."""
    shape = header.grid.shape_vox
    array: Array = np.zeros(shape, header.layout.dtype.newbyteorder("="), order="F")
    fill(array, header.layout, file, case)
    if header.scale == (1.0, 0.0):
        return array
    scaled: Array | None = None
    for z in range(shape[2]):
        values = apply_read_scaling(array[:, :, z], *header.scale)
        if scaled is None:
            scaled = np.zeros(shape, values.dtype, order="F")
        scaled[:, :, z] = values
    return array if scaled is None else scaled


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


def _nifti_header(file: BinaryIO, path: Path, case: str) -> VolumeHeader:
    is_packed = path.name.lower().endswith(".gz")
    file.seek(0)
    start = (
        unpacked_start(file, NIFTI2_HEADER_BYTES) if is_packed else file.read(NIFTI2_HEADER_BYTES)
    )
    kinds: tuple[Any, ...] = (nib.Nifti1Header, nib.Nifti2Header)
    kind = next((kind for kind in kinds if kind.may_contain_header(start)), None)
    if kind is None:
        raise ValueError("it does not begin as NIfTI does")
    header = kind(start[: kind.sizeof_hdr])
    offset = float(header["vox_offset"])
    if not offset <= MAX_NIFTI_OFFSET_BYTES:
        raise ScanError(
            f"{case}: the NIfTI header has {offset / 2**20:.0f} MiB before the voxels, "
            f"{MAX_NIFTI_OFFSET_BYTES // 2**20} MiB at most expected: the file is damaged"
        )
    is_scalar = header.get_data_dtype().kind in "iuf"
    shape = _require_3d(case, tuple(int(n) for n in header.get_data_shape()), is_scalar=is_scalar)
    slope, intercept = header.get_slope_inter()
    layout = VoxelLayout(
        sizes=shape,
        dtype=header.get_data_dtype(),
        encoding="deflated" if is_packed else "raw",
        offset=0,
        skipped_bytes=header.get_data_offset(),
    )
    return VolumeHeader(
        grid=_nifti_grid(header, shape, case),
        layout=layout,
        scale=(1.0 if slope is None else slope, 0.0 if intercept is None else intercept),
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


def _itk_grid(file: BinaryIO, layout: VoxelLayout, case: str) -> Grid:
    """Return the grid that ITK finds in the header of an NRRD or MetaImage file."""
    file.seek(0)
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
