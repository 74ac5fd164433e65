"""Versions of labels, and the copies of the current ones in `labels/<tag>/` that people and clients read."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lib.errors import StateError
from lib.imaging.formats import SCAN_SUFFIXES
from lib.imaging.scans import write_label
from lib.labels.folder_watcher import FolderWatcher
from lib.labels.history import SUFFIX, LabelHistory, Submission
from lib.labels.monailabel_index import LABELS, Index, entry_of, label_data
from lib.labels.validation import CheckedLabel
from lib.storage.atomic_files import UNFINISHED, replacing, sync
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)


class WorkingCopy:
    """Adds versions to the history and puts them in place, in an order that bears a kill at any moment.

    Volume, copy beside, row, rename, index. With the row on disk nothing that is left to do needs space, and
    what a kill leaves undone the watcher does.

    Args:
        folder: The studies folder.
        history: The versions.
        index: MONAI Label's index, whose lock makes requests and processes take turns.
        watcher: Takes up what people lay into the folder.
        set_aside: Moves a file out of sight without destroying it.
    """

    def __init__(
        self,
        folder: Path,
        history: LabelHistory,
        index: Index,
        *,
        watcher: FolderWatcher,
        set_aside: Callable[[Path], None],
    ) -> None:
        self._folder = folder
        self._history = history
        self._index = index
        self._set_aside = set_aside
        self.watcher = watcher

    def readable(self, path: Path, image_id: str, tag: str) -> Path:
        """Return the copy in `labels/<tag>/`; the version itself while something else lies in its place."""
        if self.watcher.is_refused(path):
            version = self._history.newest(image_id, tag)
            return path if version is None else self._history.path(version.digest)
        return path

    def save(
        self, image_id: str, tag: str, label: CheckedLabel, submission: Submission
    ) -> LabelVersion:
        """Keep a label as a version, the current one unless it is older than that; on disk then."""
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self._folder) as folder:
            file = Path(folder) / f"label{SUFFIX}"
            write_label(file, label.volume)
            current = self._history.newest(image_id, tag)
            moment = submission.submitted_at
            if current is not None and moment is not None and moment < current.submitted_at:
                return self._history.add(image_id, tag, file, submission)
            return self._add(
                image_id, tag, file, lambda: self._history.add(image_id, tag, file, submission)
            )

    def restore(self, image_id: str, tag: str, number: int, author: str) -> LabelVersion:
        """Add a version with the content of an older one, and return it.

        Raises:
            DatastoreError: If there is no such version.
            StateError: If its volume is gone or damaged.
        """
        file = self._history.path(self._history.version(image_id, tag, number).digest)
        if not file.is_file():
            raise StateError(
                f"{image_id}: the volume of version {number} is gone; restore a backup"
            )
        return self._add(
            image_id, tag, file, lambda: self._history.restore(image_id, tag, number, author)
        )

    def _add(
        self, image_id: str, tag: str, file: Path, add: Callable[[], LabelVersion]
    ) -> LabelVersion:
        """Call `add` and put a copy of `file`, the version's volume, in place."""
        target = self._folder / LABELS / tag / (image_id + SUFFIX)
        version: LabelVersion | None = None
        try:
            with self._index.changing() as index:
                entry = entry_of(index, image_id)
                self._take_what_lies_there(image_id, tag)
                with replacing(target) as beside:
                    shutil.copyfile(file, beside)
                    sync(beside)
                    version = add()
                entry.labels[tag] = label_data(version.info, target)
            self._history.mark_in_place(version.id)
        except Exception as error:
            if version is None:
                raise
            # It is kept: whoever sent it must not hear that it was not.
            logger.warning("%s: label %r is kept, the rest follows: %s", image_id, tag, error)
        return version

    def _take_what_lies_there(self, image_id: str, tag: str) -> None:
        """Keep what people laid there and nobody looked at yet."""
        for suffix in SCAN_SUFFIXES:
            path = self._folder / LABELS / tag / (image_id + suffix)
            self.watcher.keep_unseen_file(path, image_id, tag)
            if suffix != SUFFIX and path.is_file():
                self._set_aside(path)
