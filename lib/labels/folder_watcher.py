"""Files that people lay into `labels/<tag>/`, change there or take away, without asking the server.

It reads files, so it runs beside the requests: `Adoption.run` is called at the start and every few seconds.
Where nothing changed it asks the system for names, times and sizes only.
"""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lib.errors import LabelError, PacsError, ScanError
from lib.imaging.scans import write_label
from lib.labels.history import SUFFIX, LabelHistory, Submission
from lib.labels.monailabel_index import LABELS, Index, is_tag, label_data, scan_files
from lib.labels.validation import check_label
from lib.storage.atomic_files import UNFINISHED, digest_of, make_folder, replacing
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

SETTLED_S = 2.0
"""A file that was written to within this time may still be on its way."""

_Signature = tuple[int, int, int]
_Key = tuple[str, str]
"""Image id and tag."""


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file in `labels/<tag>/` that is no label: it stays where it is, counts as none and trains nothing.

    Attributes:
        image_id: As its name says.
        tag: Its folder.
        path: Where it lies.
        reason: What is wrong with it.
    """

    image_id: str
    tag: str
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A file in a tag's folder, and what tells whether it changed: inode, time, size."""

    image_id: str
    tag: str
    path: Path
    signature: _Signature
    modified_s: float


class FolderWatcher:
    """Makes the history and the studies folder agree.

    - A version whose copy is not in place yet (a kill, a restored backup) is put there.
    - A file that is not the current version's becomes a new version, if it is a label of an image.
    - A file that is gone hides its version.

    Args:
        folder: The studies folder.
        history: The versions.
        index: MONAI Label's index; its lock is what makes this and the requests take turns.
        labels: TG-263 name -> value.
        set_aside: Moves a file out of sight without destroying it.
        scan: Returns where an image's scan lies, once it can be read there.
    """

    def __init__(
        self,
        folder: Path,
        history: LabelHistory,
        index: Index,
        *,
        labels: Mapping[str, int],
        set_aside: Callable[[Path], None],
        scan: Callable[[str], Path],
    ) -> None:
        self._folder = folder
        self._history = history
        self._index = index
        self._labels = labels
        self._scan = scan
        self._set_aside = set_aside
        self._digests: dict[Path, tuple[_Signature, str]] = {}
        self._refused: dict[Path, tuple[_Signature, _Signature, RefusedFile]] = {}
        self._unsettled: dict[Path, tuple[_Signature, float]] = {}
        self._missing: dict[_Key, float] = {}
        self._mutex = threading.Lock()

    def run(self) -> list[LabelVersion]:
        """Look at the folder and return the versions that were made of files."""
        with self._mutex:
            return self._run()

    def _run(self) -> list[LabelVersion]:
        images = self._index.snapshot().objects
        current = {(v.image_id, v.tag): v for v in self._history.current(None)}
        files = list(self._files())
        adopted = []
        for file in files:
            version = current.get((file.image_id, file.tag))
            if file.image_id not in images:
                self._refuse(file, None, "there is no such image in the studies folder")
                continue
            try:
                made = self._look(file, version)
            except FileNotFoundError:
                continue
            except PermissionError as error:
                self._refuse(file, None, f"the file cannot be read: {error.strerror}")
                continue
            adopted += [] if made is None else [made]
        seen = {(file.image_id, file.tag) for file in files}
        for key, version in current.items():
            if key not in seen:
                self._miss(version)
        for memory in (self._digests, self._refused, self._unsettled):
            for gone in memory.keys() - {file.path for file in files}:
                del memory[gone]
        self._missing = {key: at for key, at in self._missing.items() if key not in seen}
        return adopted

    def refused(self) -> list[RefusedFile]:
        """Return the files that are no labels, sorted by path."""
        found = dict(self._refused)
        return [found[path][2] for path in sorted(found)]

    def is_refused(self, path: Path) -> bool:
        """Return whether the file at `path` was looked at and is no label."""
        return path in self._refused

    def keep_unseen_file(self, path: Path, image_id: str, tag: str) -> None:
        """Keep a file that is about to be replaced, if nobody has looked at it yet; call with the lock held.

        What is no label goes out of sight, where its owner finds it.
        """
        self._refused.pop(path, None)
        if not path.is_file():
            return
        digest = digest_of(path)
        if any(version.digest == digest for version in self._history.history(image_id, tag)):
            return
        try:
            with self._draft(path, image_id) as (draft, submission):
                self._history.add(image_id, tag, draft, submission)
        except (LabelError, ScanError, PacsError) as error:
            logger.warning("%s: put aside, a submitted label takes its place: %s", path.name, error)
            self._set_aside(path)

    def _files(self) -> Iterator[_Found]:
        """Yield the label files; of one image there may be several in a tag, with different suffixes."""
        labels = self._folder / LABELS
        for folder in sorted(labels.iterdir()) if labels.is_dir() else ():
            if not folder.is_dir() or not is_tag(folder.name):
                continue
            for name, suffix in scan_files(folder):
                path = folder / (name + suffix)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                signature = (status.st_ino, status.st_mtime_ns, status.st_size)
                yield _Found(name, folder.name, path, signature, status.st_mtime)

    def _look(self, file: _Found, version: LabelVersion | None) -> LabelVersion | None:
        """Do what one file asks for; return the version that was made of it, if one was."""
        known = self._digests.get(file.path)
        if known is None or known[0] != file.signature:
            if not self._is_settled(file):
                return None
            known = (file.signature, digest_of(file.path))
            if _signature(file.path) != file.signature:
                return None
            self._digests[file.path] = known
        digest = known[1]
        if version is not None and digest == version.digest:
            self._refused.pop(file.path, None)
            if not version.is_in_place:
                self._history.mark_in_place(version.id)
            return None
        if version is not None and not version.is_in_place and self._is_known(file, digest):
            # The save of `version` was cut short before its copy took the place of the one before.
            self._put(version, file.signature)
            return None
        return self._adopt(file, version)

    def _is_settled(self, file: _Found) -> bool:
        if time.time() - file.modified_s >= SETTLED_S:
            return True
        # A clock that is ahead, as of another machine: then it has to lie still while we watch.
        signature, since = self._unsettled.get(file.path, (None, 0.0))
        if signature != file.signature:
            self._unsettled[file.path] = (file.signature, time.monotonic())
            return False
        return time.monotonic() - since >= SETTLED_S

    def _is_known(self, file: _Found, digest: str) -> bool:
        return any(v.digest == digest for v in self._history.history(file.image_id, file.tag))

    def _adopt(self, file: _Found, version: LabelVersion | None) -> LabelVersion | None:
        """Make a file a new version, if it is a label and nobody changed anything meanwhile."""
        image = self._image(file.image_id)
        looked_at = (file.signature, (0, 0, 0) if image is None else _signature(image))
        before = self._refused.get(file.path)
        if image is None or (before is not None and before[:2] == looked_at):
            return None
        try:
            with self._draft(file.path, file.image_id) as (draft, submission):
                made = self._take(file, version, draft, submission)
        except (LabelError, ScanError) as error:
            if _signature(file.path) == file.signature:
                self._refuse(file, image, str(error))
            return None
        except PacsError as error:
            logger.warning("%s: looked at again later: %s", file.path.name, error)
            return None
        self._refused.pop(file.path, None)
        return made

    def _take(
        self, file: _Found, version: LabelVersion | None, draft: Path, submission: Submission
    ) -> LabelVersion | None:
        """Add what was drafted from a file; nothing where the file or the history changed meanwhile."""
        target = file.path.with_name(file.image_id + SUFFIX)
        with self._index.changing() as index:
            if not self._is_as_seen(file, version):
                return None
            if target != file.path:
                self.keep_unseen_file(target, file.image_id, file.tag)
            made = self._history.add(file.image_id, file.tag, draft, submission)
            if target == file.path:
                self._history.mark_in_place(made.id)
            else:
                self._copy(made)
                self._set_aside(file.path)
            if file.image_id in index.objects:
                index.objects[file.image_id].labels[file.tag] = label_data({}, target)
        return made

    @contextmanager
    def _draft(self, path: Path, image_id: str) -> Iterator[tuple[Path, Submission]]:
        """Yield a checked copy of a file as `.nii.gz`: what is kept is what was looked at.

        Raises:
            LabelError, ScanError: If it is no label of that image.
        """
        image = self._scan(image_id)
        make_folder(self._history.folder)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self._history.folder) as scratch:
            draft = Path(shutil.copyfile(path, Path(scratch) / path.name))
            found = check_label(
                draft, image=image, image_id=image_id, label_info=(), labels=self._labels
            )
            if not draft.name.endswith(SUFFIX):
                draft = draft.with_name(image_id + SUFFIX)
                write_label(draft, found.volume)
            yield draft, Submission(source="folder", organs=found.organs, doubts=found.doubts)

    def _image(self, image_id: str) -> Path | None:
        known = self._index.snapshot().objects.get(image_id)
        return None if known is None else self._folder / f"{image_id}{known.image.ext}"

    def _is_as_seen(self, file: _Found, version: LabelVersion | None) -> bool:
        newest = self._history.newest(file.image_id, file.tag)
        is_same = (newest and newest.id) == (version and version.id)
        return is_same and _signature(file.path) == file.signature

    def _refuse(self, file: _Found, image: Path | None, reason: str) -> None:
        if file.path not in self._refused:
            logger.warning("%s/%s is no label: %s", file.tag, file.path.name, reason)
        looked_at = (0, 0, 0) if image is None else _signature(image)
        refused = RefusedFile(file.image_id, file.tag, file.path, reason)
        self._refused[file.path] = (file.signature, looked_at, refused)

    def _miss(self, version: LabelVersion) -> None:
        """Put back a copy that was never written; hide a version whose copy somebody took away."""
        key = (version.image_id, version.tag)
        folder = self._folder / LABELS / version.tag
        if not version.is_in_place or not folder.is_dir():
            # Without the whole folder it was no decision on this label.
            self._put(version, None)
            return
        since = self._missing.setdefault(key, time.monotonic())
        if time.monotonic() - since < SETTLED_S:
            return
        with self._index.changing():
            newest = self._history.newest(*key)
            is_gone = not any(name == version.image_id for name, _ in scan_files(folder))
            if is_gone and newest is not None and newest.id == version.id:
                logger.warning("%s: the file of label %r was removed: hidden", *key)
                self._history.hide(*key)
        del self._missing[key]

    def _put(self, version: LabelVersion, expected: _Signature | None) -> None:
        """Write a version's copy, if it is still the current one and nobody touched what lies there."""
        path = self._folder / LABELS / version.tag / (version.image_id + SUFFIX)
        with self._index.changing():
            newest = self._history.newest(version.image_id, version.tag)
            if newest is None or newest.id != version.id or _signature_or_none(path) != expected:
                return
            self._copy(version)
        with self._index.changing():
            pass

    def _copy(self, version: LabelVersion) -> None:
        path = self._folder / LABELS / version.tag / (version.image_id + SUFFIX)
        with replacing(path) as beside:
            shutil.copyfile(self._history.path(version.digest), beside)
        self._history.mark_in_place(version.id)
        logger.info(
            "%s: version %d of label %r put in place", version.image_id, version.number, version.tag
        )


def _signature(path: Path) -> _Signature:
    return _signature_or_none(path) or (0, 0, 0)


def _signature_or_none(path: Path) -> _Signature | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size)
