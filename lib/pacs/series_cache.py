"""The scans of a PACS that are at hand: fetched whole or not at all, and let go when there are too many."""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path

from lib.errors import NotDeliveredError
from lib.imaging.scans import read_ct
from lib.pacs.client import Pacs
from lib.storage.atomic_files import UNFINISHED

logger = logging.getLogger(__name__)

IN_USE_S = 3600.0
"""Nothing is let go that somebody asked for within this time."""


class SeriesCache:
    """Series of a PACS in a folder, each in a folder of its own that is named by its UID.

    Args:
        folder: Where they lie.
        pacs: The PACS.
        limit_bytes: Of all together; those that must stay count, but are not let go.
        pinned: Returns the series that are not let go: those with labels, which trainings read.
    """

    def __init__(
        self,
        folder: Path,
        pacs: Pacs,
        *,
        limit_bytes: int,
        pinned: Callable[[], Collection[str]],
    ) -> None:
        self._folder = folder
        self._pacs = pacs
        self._limit_bytes = limit_bytes
        self._pinned = pinned
        # One lock for each series: two who want the same one fetch it once, others need not wait.
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def path(self, uid: str) -> Path:
        """Return where a series lies, or would."""
        return self._folder / uid

    def is_cached(self, uid: str) -> bool:
        """Return whether a series was fetched."""
        return self.path(uid).is_dir()

    def has_room(self) -> bool:
        """Return whether another series can be fetched without letting one go."""
        return self._size_bytes() < 0.9 * self._limit_bytes

    def fetch(self, uid: str, study_uid: str, slices: int | None) -> Path:
        """Return the folder of a series, fetched now where it is not there.

        Args:
            uid: SeriesInstanceUID.
            study_uid: StudyInstanceUID.
            slices: How many instances the PACS says it has; None where it does not say.

        Raises:
            NotDeliveredError: If the PACS does not send all of it.
            PacsError: If it does not answer.
            ScanError: If it is no regular CT; then it is not kept.
        """
        path = self.path(uid)
        with self._locks[uid]:
            if slices is not None and path.is_dir() and len(list(path.iterdir())) != slices:
                # The series grew in the PACS, or lost slices there.
                _remove(path)
            if not path.is_dir():
                self._fetch(uid, study_uid, slices)
                self._make_room(keep=uid)
        os.utime(path)
        return path

    def _fetch(self, uid: str, study_uid: str, slices: int | None) -> None:
        began = time.monotonic()
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self._folder) as scratch:
            draft = Path(scratch) / uid
            draft.mkdir()
            count = self._pacs.fetch_series(study_uid, uid, draft)
            if slices is not None and count < slices:
                raise NotDeliveredError(
                    f"{uid}: the PACS sent {count} of {slices} slices; it is asked again next time"
                )
            read_ct(draft, image_id=uid)
            draft.rename(self.path(uid))
        logger.info("%s: fetched %d slices in %.1f s", uid, count, time.monotonic() - began)

    def _make_room(self, keep: str) -> None:
        """Let those go that nobody asked for longest."""
        excess = self._size_bytes() - self._limit_bytes
        if excess <= 0:
            return
        staying = {keep, *self._pinned()}
        recent = time.time() - IN_USE_S
        for path in sorted(self._series(), key=lambda p: p.stat().st_mtime):
            if excess <= 0 or path.stat().st_mtime > recent:
                return
            if path.name not in staying:
                excess -= _size_of(path)
                _remove(path)
                logger.info("%s: let go, to make room", path.name)

    def _series(self) -> list[Path]:
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        # By their names: beside them lie the labels.
        return [path for path in found if path.is_dir() and path.name[:1].isdecimal()]

    def _size_bytes(self) -> int:
        return sum(_size_of(path) for path in self._series())


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _remove(folder: Path) -> None:
    """Remove a folder; whoever looks at the same time sees all of it or nothing."""
    aside = folder.with_name(f"{UNFINISHED}{folder.name}-{time.time_ns()}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
