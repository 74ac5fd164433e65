"""Quarantine of refused files, so that no contours are lost by a refusal."""

import json
import logging
import re
import shutil
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from lib.errors import DatastoreError
from lib.storage.atomic_files import digest_of, make_folder, sync, write_json
from lib.storage.leftovers import scratch_folder

logger = logging.getLogger(__name__)

FOLDER = "quarantine"
WHY = "why.json"
KEPT = timedelta(days=30)
"""Age below which no file is removed to make space, as its sender may not have noticed the refusal yet."""
LIMIT_BYTES = 5 * 2**30
"""Size limit of all files together, in bytes."""
MAX_FILE_BYTES = 256 * 2**20
"""Size limit of one file, in bytes; no label is larger, and a few large files must not fill the quarantine."""
HEAD_BYTES = 2**20
"""Number of bytes that are kept of a file that is too large: enough to recognize it."""
_NAME = re.compile(r"[0-9]{8}T[0-9]{12}Z-[0-9a-f]{8}")
_CHUNK_BYTES = 2**20


class Quarantine:
    """Refused files, each in a folder of its own with the reason beside it.

    Above `limit_bytes` the oldest files are removed, but none younger than `KEPT`. If that is not enough, only
    the reason and the beginning of a new file are kept.

    Args:
        folder: Folder of the database; files go into its `quarantine`.
        limit_bytes: Size limit of all files together.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder / FOLDER
        self.limit_bytes = limit_bytes
        self._mutex = threading.Lock()
        # Counted at the first refusal, and again at the limit: a listing of thousands of files takes time.
        self._used_bytes: int | None = None

    def keep(self, file: Path, about: Mapping[str, Any], *, suffix: str) -> str:
        """Keep a copy of a file, and return a phrase for the client, such as `kept as quarantine/...`.

        A full disk raises no error, since the client must get the reason of the refusal.

        Args:
            file: The refused file.
            about: Image id, tag, user, reason.
            suffix: Suffix of the copy.
        """
        size = file.stat().st_size
        try:
            name, is_whole = self._keep(file, size, about, suffix)
        except OSError as error:
            logger.error("%s: could not be kept in quarantine: %s", file.name, error)
            return f"not kept in quarantine ({error.strerror})"
        if is_whole:
            return f"kept as {FOLDER}/{name}"
        return f"too large for the quarantine, its beginning is kept as {FOLDER}/{name}"

    def _keep(
        self, file: Path, size: int, about: Mapping[str, Any], suffix: str
    ) -> tuple[str, bool]:
        digest = digest_of(file)
        moment = datetime.now(timezone.utc)
        name = f"{moment:%Y%m%dT%H%M%S%f}Z-{digest[:8]}"
        make_folder(self.folder)
        with self._mutex, scratch_folder(self.folder) as draft:
            is_whole = self._make_room(size, moment)
            entry = draft / name
            entry.mkdir()
            copy = entry / f"refused{suffix}"
            _copy(file, copy, size if is_whole else HEAD_BYTES)
            sync(copy)
            why = {**about, "at": moment.isoformat(), "file": copy.name, "sha256": digest,
                   "bytes": size, "is_whole": is_whole}  # fmt: skip
            write_json(entry / WHY, why)
            if self._used_bytes is not None:
                self._used_bytes += _size(entry)
            entry.rename(self.folder / name)
        sync(self.folder)
        return name, is_whole

    def _make_room(self, size: int, moment: datetime) -> bool:
        """Remove the oldest files until `size` more bytes fit; return whether they do."""
        if size > MAX_FILE_BYTES:
            return False
        if self._used_bytes is None or self._used_bytes + size > self.limit_bytes:
            self._used_bytes = self._remove_oldest(size, moment)
        return self._used_bytes + size <= self.limit_bytes

    def _remove_oldest(self, size: int, moment: datetime) -> int:
        """Remove the oldest files until `size` more bytes fit, and return the size of the others in bytes."""
        sizes = {path: _size(path) for path in self._entries()}
        used = sum(sizes.values())
        for path, freed in sizes.items():
            if used + size <= self.limit_bytes or moment - _moment(path) < KEPT:
                break
            logger.warning("quarantine: %s is removed to make space", path.name)
            shutil.rmtree(path)
            used -= freed
        return used

    def entries(self) -> list[dict[str, Any]]:
        """Return name, reason and origin of each refused file, newest first."""
        entries = []
        for path in reversed(self._entries()):
            try:
                why = json.loads((path / WHY).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                why = {"reason": f"{WHY} cannot be read"}
            entries.append({"name": path.name, **why})
        return entries

    def file(self, name: str) -> Path:
        """Return the path of a refused file.

        Raises:
            DatastoreError: If there is no file of that name.
        """
        folder = self.folder / name
        files = sorted(folder.glob("refused*")) if _NAME.fullmatch(name) else []
        if not files:
            raise DatastoreError(f"{name[:80]!r}: there is no file of that name in quarantine")
        return files[0]

    def _entries(self) -> list[Path]:
        """Return the folders, oldest first: their names begin with the time."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))


def _moment(path: Path) -> datetime:
    moment = datetime.strptime(path.name.partition("Z")[0], "%Y%m%dT%H%M%S%f")  # noqa: DTZ007 - set below
    return moment.replace(tzinfo=timezone.utc)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _copy(source: Path, target: Path, limit_bytes: int) -> None:
    remaining = limit_bytes
    with source.open("rb") as reading, target.open("wb") as writing:
        while remaining > 0 and (chunk := reading.read(min(remaining, _CHUNK_BYTES))):
            writing.write(chunk)
            remaining -= len(chunk)
