"""Volume files with a grid (NIfTI, NRRD, MHA): their names and beginnings, and writing of them.

NIfTI is written with nibabel, which notices a full disk. `lib.imaging.volume_reading` reads all of them.
"""

import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lib.errors import LabelError, ScanError, StorageError
from lib.imaging.geometry import Grid, to_sitk
from lib.imaging.volume_headers import (
    MAX_HEADER_BYTES,
)
from lib.storage.atomic_files import replacing
from lib.storage.storage_errors import storing

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Suffixes of files that hold one volume with its grid; detached headers (.nhdr, .mhd) are not read."""

CT_STEMS = ("ct", "img", "image")
"""File names of the CT in a case folder (OpenKBP: `pt_1/ct.nii.gz`, PDDCA: `img.nrrd`)."""

LABEL_STEMS = ("label", "labels", "seg", "segmentation")
"""File names of the label volume in a case folder (OpenKBP: `pt_1/label.nii.gz`)."""

NIFTI2_HEADER_BYTES = 540
_NIFTI_SIGNATURES = tuple(
    struct.pack(f"{order}i", size) for order in "<>" for size in (348, NIFTI2_HEADER_BYTES)
)
"""First four bytes of NIfTI-1 and NIfTI-2 files: the size of the header (`sizeof_hdr`)."""

DAMAGE = (RuntimeError, OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError,
                   KeyError, OverflowError, MemoryError)  # fmt: skip
"""Exceptions that SimpleITK, nibabel and gzip raise on damaged files."""

_NOT_WRITTEN = "so it was not written; everything that was there is untouched"

Array = np.ndarray[Any, np.dtype[Any]]


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
    except DAMAGE as error:
        raise StorageError(
            f"{path.name}: {reason_of(error)}, {_NOT_WRITTEN}; is the disk full?"
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
            start = unpacker.decompress(start, NIFTI2_HEADER_BYTES)
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


def reason_of(error: BaseException) -> str:
    """Return the last line of an exception's message, or its type."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _write_nifti(path: Path, array: Array, grid: Grid) -> None:
    image: Any = nib.Nifti1Image(array, grid.affine_ras)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine_ras, code=1)
    image.set_qform(grid.affine_ras, code=1)
    nib.save(image, path)
