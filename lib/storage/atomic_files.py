"""Functions to write files atomically, and to remove the remains of killed processes."""

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
"""Prefix of the names of unfinished files and folders."""
SCRATCH = "organnet-"
"""Prefix of the names of this program's files in the system's temporary folder."""
ABANDONED_S = 3600.0
"""Time in s without a write after which an unfinished file counts as left by a killed process."""


def remove_unfinished(folder: Path) -> int:
    """Remove unfinished files and folders of killed processes below `folder`; return their number.

    A file that another process may still be writing to is kept.
    """
    return _remove_abandoned(folder.rglob(f"{UNFINISHED}*"))


def remove_abandoned_scratch() -> int:
    """Remove temporary files of killed processes of this program; return their number.

    They contain uploaded scans and contours, and not every system empties its temporary folder. Files of other
    users, and files that may be in use, are kept.
    """
    scratch_paths = Path(tempfile.gettempdir()).glob(f"{SCRATCH}*")
    return _remove_abandoned(path for path in scratch_paths if _is_own(path))


def _remove_abandoned(paths: Iterable[Path]) -> int:
    limit_s = time.time() - ABANDONED_S
    abandoned = [path for path in paths if _last_written_s(path) < limit_s]
    for path in abandoned:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(abandoned)


def _last_written_s(path: Path) -> float:
    """Return the time of the last write to a file or folder; the present time if it was removed meanwhile."""
    try:
        inside = path.rglob("*") if path.is_dir() else ()
        return max(float(entry.lstat().st_mtime) for entry in (path, *inside))
    except FileNotFoundError:
        return time.time()


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; on success it replaces `path`, synced to disk.

    On an exception the temporary file is removed, and `path` is unchanged. The temporary name keeps the
    suffixes, by which SimpleITK chooses the format.
    """
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix="-" + path.name, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content to `target`, atomically."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; a number that is not finite becomes null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(finite(value), indent=2, allow_nan=False), encoding="utf-8")


def finite(value: Any) -> Any:
    """Return `value` with None in place of NaN and infinity, which JSON does not allow."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, synced to disk so that they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, reports a full disk.

    SQLite reports it in its message (https://sqlite.org/rescode.html#full); SQLAlchemy passes it on as `orig`.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "database or disk is full" in str(getattr(error, "orig", "")):
        return True
    return error.__cause__ is not None and is_disk_full(error.__cause__)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
