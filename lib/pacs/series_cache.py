"""Local copies of CT series of a PACS: fetched whole or not at all, and evicted when space runs out."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from lib.errors import NotDeliveredError
from lib.imaging.scans import read_ct
from lib.jobs.keyed_lock import KeyedLock
from lib.pacs.client import Pacs
from lib.storage.leftovers import scratch_folder, unfinished_prefix

logger = logging.getLogger(__name__)

IN_USE_S = 3600.0
"""Time in s after its last use during which a series is not evicted."""


@dataclass(frozen=True)
class SeriesCache:
    """Series of a PACS in `folder`, each in a folder of its own that is named by its UID."""

    folder: Path
    pacs: Pacs
    limit_bytes: int
    """Size limit of all series together; pinned series count, but are not evicted."""
    pinned: Callable[[], Collection[str]]
    """Returns the series that are not evicted: those with labels, which trainings read."""
    _locks: KeyedLock = field(default_factory=KeyedLock, init=False)
    """One lock per series: a series requested twice at once is fetched once; other series do not wait."""

    def path(self, uid: str) -> Path:
        """Return the folder of a series, which exists once the series was fetched."""
        return self.folder / uid

    def is_cached(self, uid: str) -> bool:
        """Return whether a series is in the cache."""
        return self.path(uid).is_dir()

    def cached(self) -> frozenset[str]:
        """Return the series in the cache."""
        return frozenset(path.name for path in self._series())

    def has_room(self) -> bool:
        """Return whether another series fits without evicting one."""
        return self._size_bytes() < 0.9 * self.limit_bytes

    def fetch(self, uid: str, study_uid: str, slices: int | None) -> Path:
        """Return the folder of a series, which is fetched now if it is not in the cache.

        Args:
            uid: SeriesInstanceUID.
            study_uid: StudyInstanceUID.
            slices: Number of its instances according to the PACS; None if unknown.

        Raises:
            NotDeliveredError: If the PACS does not send all of it.
            PacsError: If it does not answer.
            ScanError: If the series is not a regular CT; it is not cached then.
        """
        path = self.path(uid)
        with self._locks.of(uid):
            if slices is not None and path.is_dir() and len(list(path.iterdir())) != slices:
                # Slices were added to the series in the PACS, or removed.
                _remove(path)
            if not path.is_dir():
                self._fetch(uid, study_uid, slices)
                self._make_room(keep=uid)
        os.utime(path)
        return path

    def _fetch(self, uid: str, study_uid: str, slices: int | None) -> None:
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(self.folder) as scratch:
            draft = scratch / uid
            draft.mkdir()
            count = self.pacs.fetch_series(study_uid, uid, draft)
            if slices is not None and count < slices:
                raise NotDeliveredError(
                    f"{uid}: the PACS sent {count} of {slices} slices; the series is requested again later"
                )
            read_ct(draft, image_id=uid)
            draft.rename(self.path(uid))
        logger.info("%s: fetched %d slices in %.1f s", uid, count, time.monotonic() - began)

    def _make_room(self, keep: str) -> None:
        """Evict the least recently used series until the size limit is met."""
        excess = self._size_bytes() - self.limit_bytes
        if excess <= 0:
            return
        pinned = {keep, *self.pinned()}
        recent = time.time() - IN_USE_S
        for path in sorted(self._series(), key=lambda p: p.stat().st_mtime):
            if excess <= 0 or path.stat().st_mtime > recent:
                return
            if path.name not in pinned:
                excess -= _size_of(path)
                _remove(path)
                logger.info("%s: evicted from the cache", path.name)

    def _series(self) -> list[Path]:
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        # The name of a series folder is a UID, which begins with a digit; `labels` lies beside these folders.
        return [path for path in folders if path.is_dir() and path.name[:1].isdecimal()]

    def _size_bytes(self) -> int:
        return sum(_size_of(path) for path in self._series())


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _remove(folder: Path) -> None:
    """Remove a folder; other threads see all of it or nothing."""
    aside = folder.with_name(f"{unfinished_prefix()}{folder.name}-{time.time_ns()}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
