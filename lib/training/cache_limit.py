"""Size limit of the cache of prepared cases."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lib.training.case_scores import FOLDER as SCORES_FOLDER

VALID = "label.npy"
"""File without which a prepared case is prepared again (`lib.training.cases`)."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A prepared case or a stored score."""

    path: Path
    used_ns: int
    size: int


def limit_cache(folder: Path, limit_bytes: float, *, in_use: Collection[str]) -> int:
    """Remove the entries that were used longest ago until the cache is within its limit; return how many.

    Entries in use are kept even if they exceed the limit alone. A removal that is interrupted leaves a case
    that is prepared again, never one that is read half.

    Args:
        folder: Folder of the cache.
        limit_bytes: Limit of its size.
        in_use: Names of the folders of prepared cases that a running training reads.
    """
    entries = sorted(_entries(folder), key=lambda entry: entry.used_ns)
    excess = sum(entry.size for entry in entries) - limit_bytes
    removed = 0
    for entry in entries:
        if excess <= 0:
            break
        if entry.path.name in in_use:
            continue
        _remove(entry.path)
        excess -= entry.size
        removed += 1
    return removed


def _entries(folder: Path) -> list[_Entry]:
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.name != SCORES_FOLDER]
    scores = folder / SCORES_FOLDER
    if scores.is_dir():
        paths += scores.iterdir()
    return [_entry(path) for path in paths]


def _entry(path: Path) -> _Entry:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return _Entry(path, path.stat().st_mtime_ns, size)


def _remove(path: Path) -> None:
    if path.is_dir():
        (path / VALID).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
