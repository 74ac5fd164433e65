"""Functions to write files atomically."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.storage.leftovers import unfinished_prefix


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; on success it replaces `path`, synced to disk.

    On an exception the temporary file is removed, and `path` is unchanged. The temporary name keeps the
    suffixes, by which SimpleITK chooses the format.
    """
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(
        prefix=unfinished_prefix(), suffix="-" + path.name, dir=path.parent
    )
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


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
