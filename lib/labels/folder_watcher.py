"""Watcher of `labels/<tag>/`, where people add, change and remove label files without the server.

The watcher reads files, so it runs beside the requests: `FolderWatcher.run` is called at the start and
then every few seconds. It looks only at the labels of images that the index reports as changed, and at those
that are not in order yet.
"""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from lib.errors import DatastoreError, LabelError, PacsError, ScanError, StorageError
from lib.importers.run import changes_by_import
from lib.labels.folder_content import trouble_of
from lib.labels.history import FOLDER, LabelHistory
from lib.labels.store_index import Index
from lib.labels.studies_folder import LABELS
from lib.labels.submission import LabelSubmissions
from lib.storage.atomic_files import copy_file, digest_of
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

SETTLED_S = 2.0
"""Time in s without a write after which a file counts as complete."""

_Signature = tuple[int, int, int]
"""Inode, time of modification in ns and size in bytes; it differs when a file changed."""
_MISSING: _Signature = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A file in a tag's folder, as it was when the folder was listed."""

    image_id: str
    """Taken from the file's name."""
    tag: str
    """Name of the folder."""
    path: Path
    signature: _Signature


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file in `labels/<tag>/` that failed validation: it stays there, is not listed and not trained on."""

    file: LabelFile
    image_signature: _Signature
    """Signature of the image: the file is validated again when the file or the image changes."""
    reason: str
    """The validation error."""


class _ChangedError(Exception):
    """The file or the history changed after the file was listed and before the index was locked."""


@dataclass(eq=False)
class FolderWatcher:
    """Reconciles the label history with the labels folder.

    - A version whose working copy is missing (after a kill or a restored backup) gets its copy.
    - A file that differs from the current version becomes a new version, if it is a label of an image.
    - A version whose file was removed is hidden.
    """

    folder: Path
    """The studies folder."""
    history: LabelHistory
    index: Index
    """The store's index; its lock serializes the watcher and the requests."""
    submissions: LabelSubmissions

    def __post_init__(self) -> None:
        self.submissions.on_replaced = lambda path: self._refused.pop(path, None)
        self._digests: dict[Path, tuple[_Signature, str]] = {}
        self._refused: dict[Path, RefusedFile] = {}
        self._unsettled: dict[Path, tuple[_Signature, float]] = {}
        self._missing_since: dict[tuple[str, str], float] = {}
        self._paths: dict[str, set[Path]] = {}
        self._not_in_order: set[str] = set()
        self._mutex = threading.Lock()

    def run(self) -> list[LabelVersion]:
        """Look at the label files once, and return the versions that were made from files."""
        with self._mutex:
            changed = self.index.take_changed()
            index, current = self.index.snapshot(), self.history.current_versions()
            files = self._files(None if changed is None else changed | self._not_in_order)
            if changed is None:
                looked_at = {*self._paths, *current.by_image, *(file.image_id for file in files)}
            else:
                looked_at = changed | self._not_in_order
            # Set first: if an unexpected error ends this run, the next one looks at all of them again.
            self._not_in_order = looked_at
            submitted = []
            for file in files:
                version = current.of_image(file.image_id).get(file.tag)
                if file.image_id in index.images:
                    new = self._try_to_process(file, version)
                    submitted += [] if new is None else [new]
                elif file.image_id in index.listing.refused or "." in index.listing.refused:
                    self._refuse(file, None, "its image cannot be read at present")
                else:
                    self._refuse(file, None, "there is no such image in the studies folder")
            seen = {(file.image_id, file.tag) for file in files}
            for image_id in sorted(looked_at):
                for tag, version in current.of_image(image_id).items():
                    if (image_id, tag) not in seen and not self.index.label_files.is_unreadable(
                        tag
                    ):
                        try:
                            self._handle_missing_file(version)
                        except OSError as error:
                            logger.error("%s: the copy of label %r: %s", image_id, tag, error)
            self._forget_all_but(files, looked_at)
            self._not_in_order = self._out_of_order(files, looked_at)
            return submitted

    def _forget_all_but(self, files: list[LabelFile], looked_at: set[str]) -> None:
        """Forget the files of the images `looked_at` that are not among `files`."""
        paths: dict[str, set[Path]] = {}
        for file in files:
            paths.setdefault(file.image_id, set()).add(file.path)
            self._missing_since.pop((file.image_id, file.tag), None)
        for image_id in looked_at:
            now = paths.get(image_id, set())
            for path in self._paths.pop(image_id, set()) - now:
                for by_path in (self._digests, self._refused, self._unsettled):
                    by_path.pop(path, None)
            if now:
                self._paths[image_id] = now

    def _out_of_order(self, files: list[LabelFile], looked_at: set[str]) -> set[str]:
        """Return the images `looked_at` that have a file or a version which the next run must look at again."""
        current = self.history.current_versions()
        in_place = {
            (i, v.tag, v.digest)
            for i in looked_at
            for v in current.of_image(i).values()
            if v.is_in_place
        }
        missing = {(image_id, tag) for image_id, tag, _ in in_place}
        waiting = set()
        for file in files:
            signature, digest = self._digests.get(file.path, (_MISSING, ""))
            missing.discard((file.image_id, file.tag))
            is_known = signature == file.signature and file.path not in self._refused
            if not is_known or (file.image_id, file.tag, digest) not in in_place:
                waiting.add(file.image_id)
        unwritten = {
            i for i in looked_at if not all(v.is_in_place for v in current.of_image(i).values())
        }
        return waiting | unwritten | {image_id for image_id, _ in missing}

    def refused(self) -> list[RefusedFile]:
        """Return the files that failed validation, sorted by path."""
        refused = dict(self._refused)
        return [refused[path] for path in sorted(refused)]

    def readable(self, path: Path, image_id: str, tag: str) -> Path:
        """Return `path`, a working copy, or the volume in the history while `path` is refused or unreadable."""
        is_readable = path not in self._refused and not trouble_of(path)
        version = None if is_readable else self.history.newest(image_id, tag)
        return path if version is None else self.history.path(version.digest)

    def _files(self, image_ids: set[str] | None) -> list[LabelFile]:
        """Return the label files of images, or of all if None; one image may have several files in a tag."""
        files = []
        for image_id, tag, path in self.index.label_paths(image_ids):
            signature = _signature(path)
            if signature is not None:
                files.append(LabelFile(image_id, tag, path, signature))
        return files

    def _try_to_process(self, file: LabelFile, version: LabelVersion | None) -> LabelVersion | None:
        """Do as `_process`; an error of the disk concerns this file only."""
        try:
            return self._process(file, version)
        except FileNotFoundError:
            return None
        except (OSError, StorageError) as error:
            if isinstance(error, OSError) and error.filename == str(file.path):
                self._refuse(file, None, f"the file cannot be read: {error.strerror}")
            else:
                logger.error("%s/%s is tried again later: %s", file.tag, file.path.name, error)
            return None

    def _process(self, file: LabelFile, version: LabelVersion | None) -> LabelVersion | None:
        """Compare a file with the current version; return the version made from it, if there is one."""
        digest = self._digest(file)
        if digest is None:
            return None
        if version is not None and digest == version.digest:
            self._refused.pop(file.path, None)
            if not version.is_in_place:
                self.history.mark_in_place(version)
            return None
        if version is not None and not version.is_in_place and self._is_earlier(file, digest):
            # The process was killed before the copy of `version` replaced that of the previous version.
            self._write_copy_if_current(version, file.signature)
            return None
        return self._submit(file, version)

    def _digest(self, file: LabelFile) -> str | None:
        """Return the SHA-256 of a file; None while it may still be written to."""
        signature, digest = self._digests.get(file.path, (_MISSING, ""))
        if signature != file.signature:
            if not self._is_settled(file):
                return None
            digest = digest_of(file.path)
            if _signature(file.path) != file.signature:
                return None
            self._digests[file.path] = (file.signature, digest)
        return digest

    def _is_settled(self, file: LabelFile) -> bool:
        _, modified_ns, _ = file.signature
        if time.time() - modified_ns / 1e9 >= SETTLED_S:
            return True
        # Another machine's clock may have set a time in the future: wait until the file stays unchanged.
        signature, since = self._unsettled.get(file.path, (None, 0.0))
        if signature != file.signature:
            self._unsettled[file.path] = (file.signature, time.monotonic())
            return False
        return time.monotonic() - since >= SETTLED_S

    def _is_earlier(self, file: LabelFile, digest: str) -> bool:
        return any(v.digest == digest for v in self.history.history(file.image_id, file.tag))

    def _submit(self, file: LabelFile, version: LabelVersion | None) -> LabelVersion | None:
        """Make a file a new version, if it is a label and nothing changed meanwhile."""
        image = self._image(file.image_id)
        refused = self._refused.get(file.path)
        if image is None or (
            refused is not None
            and refused.file.signature == file.signature
            and refused.image_signature == (_signature(image) or _MISSING)
        ):
            return None

        def require_unchanged() -> None:
            newest = self.history.newest(file.image_id, file.tag)
            is_same_version = (newest and newest.id) == (version and version.id)
            if not is_same_version or _signature(file.path) != file.signature:
                raise _ChangedError

        try:
            submitted = self.submissions.submit(
                file.image_id,
                file.tag,
                file.path,
                source=FOLDER,
                changes=changes_by_import(self.folder, file.image_id, self._digests[file.path][1]),
                precondition=require_unchanged,
            )
        except (LabelError, ScanError) as error:
            if _signature(file.path) == file.signature:
                self._refuse(file, image, str(error))
            return None
        except (DatastoreError, _ChangedError):
            return None
        except PacsError as error:
            logger.warning("%s: validated again later: %s", file.path.name, error)
            return None
        self._refused.pop(file.path, None)
        return submitted

    def _image(self, image_id: str) -> Path | None:
        return self.index.image_path(image_id)

    def _refuse(self, file: LabelFile, image: Path | None, reason: str) -> None:
        if file.path not in self._refused:
            logger.warning("%s/%s is no label: %s", file.tag, file.path.name, reason)
        image_signature = (image and _signature(image)) or _MISSING
        self._refused[file.path] = RefusedFile(file, image_signature, reason)

    def _handle_missing_file(self, version: LabelVersion) -> None:
        """Write a working copy that was never written; hide a version whose working copy was removed."""
        key = (version.image_id, version.tag)
        folder = self.folder / LABELS / version.tag
        if not version.is_in_place or not folder.is_dir():
            # The folder as a whole is missing, so this label was not removed on purpose.
            self._write_copy_if_current(version, None)
            return
        since = self._missing_since.setdefault(key, time.monotonic())
        if time.monotonic() - since < SETTLED_S:
            return
        with self.index.locked():
            newest = self.history.newest(*key)
            is_gone = not self.index.paths_of_label(*key)
            if is_gone and newest is not None and newest.id == version.id:
                logger.warning("%s: the file of label %r was removed: hidden", *key)
                self.history.hide(*key)
        del self._missing_since[key]

    def _write_copy_if_current(self, version: LabelVersion, expected: _Signature | None) -> None:
        """Write a version's working copy, unless the current version or the file there changed meanwhile.

        Args:
            version: The version.
            expected: Signature of the file that is to be replaced; None if there should be no file.
        """
        path = self.submissions.working_copy(version.image_id, version.tag)
        with self.index.locked():
            newest = self.history.newest(version.image_id, version.tag)
            if newest is None or newest.id != version.id or _signature(path) != expected:
                return
            copy_file(self.history.path(version.digest), path)
            self.index.changed(path)
            self.history.mark_in_place(version)
            logger.info("%s: wrote the copy of label %r %d", path.name, version.tag, version.number)


def _signature(path: Path) -> _Signature | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size)
