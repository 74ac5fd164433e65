"""Files that clients send: kept in a folder of their own for as long as the request lasts."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import UploadFile

from lib.errors import ScanError
from lib.imaging.formats import SCAN_SUFFIXES

UPLOAD_SUFFIXES = (*SCAN_SUFFIXES, ".zip", ".dcm")
MAX_UPLOAD_BYTES = 2 * 2**30
MAX_LABEL_BYTES = 512 * 2**20
"""A label on 512 x 512 x 1000 voxels has 250 MiB where nothing is compressed."""
_CHUNK_BYTES = 2**20


@contextmanager
def received(
    *files: UploadFile,
    limit_bytes: int = MAX_UPLOAD_BYTES,
    refuse: Callable[[Path, str], str] | None = None,
) -> Iterator[list[Path]]:
    """Yield the uploaded files on disk, and remove them whatever happens (defect 26).

    A file keeps the suffix that the client gave it, and nothing else of its name (defect 11).

    Args:
        files: What was sent.
        limit_bytes: A larger file is refused.
        refuse: Given a file that is refused here, and why, returns what to tell the client.

    Raises:
        ScanError: If its format is none of ours, or it is larger than `limit_bytes`.
    """
    folder = Path(tempfile.mkdtemp(prefix="organnet-upload-"))
    try:
        yield [
            _keep(file, folder / f"{n:05d}", limit_bytes, refuse) for n, file in enumerate(files)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(
    file: UploadFile, stem: Path, limit_bytes: int, refuse: Callable[[Path, str], str] | None
) -> Path:
    name = Path(file.filename or "scan.nii.gz").name
    suffix = next((s for s in UPLOAD_SUFFIXES if name.lower().endswith(s)), None)
    path = stem.with_name(stem.name + (suffix or ".unknown"))
    size = 0
    with path.open("wb") as target:
        while size <= limit_bytes and (chunk := file.file.read(_CHUNK_BYTES)):
            size += len(chunk)
            target.write(chunk)
    reason = None
    if suffix is None:
        reason = f"{name[:80]!r}: expected a file ending in {', '.join(UPLOAD_SUFFIXES)}"
    elif size > limit_bytes:
        reason = f"{name[:80]!r} is larger than {limit_bytes // 2**20} MiB, more than it can be"
    if reason is not None:
        raise ScanError(reason if refuse is None else refuse(path, reason))
    return path


def stem_of(file: UploadFile) -> str:
    """Return the name that the client gave the file, without folders and suffix."""
    name = Path(file.filename or "").name
    suffix = next((s for s in UPLOAD_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]
