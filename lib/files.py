"""Writing a file so that nobody ever finds half of it."""

import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UNFINISHED = ".writing-"
ABANDONED_S = 3600.0
"""A file that nobody has written to for so long is of a process that was killed."""


def remove_unfinished(folder: Path) -> int:
    """Remove what killed processes left half written below `folder`; return how many files that were.

    A file that another process may still be writing is left alone.
    """
    before = time.time() - ABANDONED_S
    left = [
        p for p in folder.rglob(f"{_UNFINISHED}*") if p.is_file() and p.stat().st_mtime < before
    ]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it takes `path`'s place, synced to disk.

    On an exception the unfinished file is removed and `path` is as it was. The temporary name keeps the
    suffixes, by which SimpleITK chooses the format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_UNFINISHED, suffix="-" + path.name, dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)
        _sync(beside)
        beside.replace(path)
        _sync(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold the lock that the file at `path` stands for; others, in whatever process, wait for it.

    A process that ends, however it ends, lets go. It cannot be held twice by one thread: that would wait for
    itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
