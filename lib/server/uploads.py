"""Files that clients send: kept in a folder of their own for as long as the request lasts."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import UploadFile

from lib.errors import ScanError
from lib.volume_files import SCAN_SUFFIXES

UPLOAD_SUFFIXES = (*SCAN_SUFFIXES, ".zip", ".dcm")
MAX_UPLOAD_BYTES = 2 * 2**30
_CHUNK_BYTES = 2**20


@contextmanager
def received(*files: UploadFile) -> Iterator[list[Path]]:
    """Yield the uploaded files on disk, and remove them whatever happens (defect 26).

    A file keeps the suffix that the client gave it, and nothing else of its name (defect 11).

    Raises:
        ScanError: If its format is none of ours, or it is larger than `MAX_UPLOAD_BYTES`.
    """
    folder = Path(tempfile.mkdtemp(prefix="organnet-upload-"))
    try:
        yield [_keep(file, folder / f"{n:05d}") for n, file in enumerate(files)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(file: UploadFile, stem: Path) -> Path:
    name = Path(file.filename or "scan.nii.gz").name
    suffix = next((s for s in UPLOAD_SUFFIXES if name.lower().endswith(s)), None)
    if suffix is None:
        raise ScanError(f"{name[:80]!r}: expected a file ending in {', '.join(UPLOAD_SUFFIXES)}")
    path = stem.with_name(stem.name + suffix)
    size = 0
    with path.open("wb") as target:
        while chunk := file.file.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > MAX_UPLOAD_BYTES:
                raise ScanError(
                    f"{name[:80]!r} is larger than {MAX_UPLOAD_BYTES // 2**20} MiB, more than a CT"
                )
            target.write(chunk)
    return path


def stem_of(file: UploadFile) -> str:
    """Return the name that the client gave the file, without folders and suffix."""
    name = Path(file.filename or "").name
    suffix = next((s for s in UPLOAD_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]
