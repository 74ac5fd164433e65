"""Writing a file so that nobody ever finds half of it."""

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = ".writing-"
"""Begins the name of every file and folder that is not finished yet."""
_CHUNK_BYTES = 2**20
SCRATCH = "organnet-"
"""Begins the name of every file and folder among the system's temporary ones."""
ABANDONED_S = 3600.0
"""A file that nobody has written to for so long is of a process that was killed."""


def remove_unfinished(folder: Path) -> int:
    """Remove what killed processes left half written below `folder`; return how many files and folders.

    A file that another process may still be writing is left alone.
    """
    return _remove_abandoned(folder.rglob(f"{UNFINISHED}*"))


def remove_abandoned_scratch() -> int:
    """Remove what killed processes of ours left among the system's temporary files; return how many.

    These are scans and contours that were sent and answered: nobody else would remove them where no tool of
    the system does. Files of other users are left alone, and so is what may still be in use.
    """
    ours = Path(tempfile.gettempdir()).glob(f"{SCRATCH}*")
    return _remove_abandoned(path for path in ours if _is_own(path))


def _remove_abandoned(paths: Iterable[Path]) -> int:
    before = time.time() - ABANDONED_S
    left = [path for path in paths if _last_written_s(path) < before]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(left)


def _last_written_s(path: Path) -> float:
    """Return when a file, or anything in a folder, was last written to; now where it is gone meanwhile."""
    try:
        inside = path.rglob("*") if path.is_dir() else ()
        return max(float(one.lstat().st_mtime) for one in (path, *inside))
    except FileNotFoundError:
        return time.time()


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it takes `path`'s place, synced to disk.

    On an exception the unfinished file is removed and `path` is as it was. The temporary name keeps the
    suffixes, by which SimpleITK chooses the format.
    """
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix="-" + path.name, dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(mode)
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; a number that is not finite becomes null."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(finite(value), indent=2, allow_nan=False), encoding="utf-8")


def finite(value: Any) -> Any:
    """Return `value` with every NaN and infinity, which JSON does not know, as None."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that a power cut cannot take a new one away again."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or what it came from, says that nothing more can be written.

    SQLite says so in words (https://sqlite.org/rescode.html#full), which SQLAlchemy hands on as `orig`.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "database or disk is full" in str(getattr(error, "orig", "")):
        return True
    return error.__cause__ is not None and is_disk_full(error.__cause__)


def sync(path: Path) -> None:
    """Return when a file's content, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
