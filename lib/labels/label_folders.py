"""Names of the label files in `labels/<tag>/`, kept in memory."""

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lib.errors import DatastoreError
from lib.imaging.formats import SCAN_SUFFIXES, label_stem_of, suffix_of
from lib.labels.folder_content import Identity, identity_of
from lib.labels.studies_folder import LABELS
from lib.storage.identifiers import image_id_of, require_tag

SETTLED_S = 2.0
"""Age in s of a folder's last change from which on its time of modification shows every further change."""
_SUFFIXES = (*SCAN_SUFFIXES, ".seg.nrrd")


@dataclass(slots=True)
class _TagFolder:
    identity: Identity = ()
    is_settled: bool = False
    names: dict[str, set[str]] = field(default_factory=dict)
    """Image id -> names of its files."""
    error: str = ""
    """Why the folder cannot be read; its files are those that were read last."""


class LabelFolders:
    """The label files of a store; not thread-safe.

    Args:
        folder: The folder that `labels/` lies in.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LABELS
        self._error = ""
        self._tags: dict[str, _TagFolder] = {}

    def tags(self) -> list[str]:
        """Return the tags that have a folder, sorted."""
        return sorted(self._tags)

    def is_unreadable(self, tag: str) -> bool:
        """Return whether the folder of a tag cannot be read, so that its files are unknown."""
        return bool(self._error or (tag in self._tags and self._tags[tag].error))

    def names(self, tag: str, image_id: str) -> list[str]:
        """Return the names of the label files of an image, sorted."""
        folder = self._tags.get(tag)
        return [] if folder is None else sorted(folder.names.get(image_id, ()))

    def suffix(self, tag: str, image_id: str) -> str | None:
        """Return the suffix of the file of an image's label; of several the preferred one."""
        names = [name for name in self.names(tag, image_id) if label_stem_of(name) == image_id]
        return min((suffix_in(name) for name in names), key=_preference, default=None)

    def changed_folders(self) -> list[str]:
        """Return the folders that changed since they were read, relative to `labels/`; empty for itself."""
        changed = [""] if self._error else []
        for tag, folder in list(self._tags.items()):
            try:
                if identity_of(self.path / tag) != folder.identity:
                    changed.append(tag)
            except OSError:
                changed.append(tag)
        return changed

    def image_ids(self) -> set[str]:
        """Return the images with a file in any folder."""
        return set[str]().union(*(folder.names for folder in self._tags.values()))

    def check(self, changed: Collection[str] | None) -> set[str]:
        """Read what changed, and return the images whose files were added, replaced or removed.

        Args:
            changed: Paths relative to `labels/` at which something changed; None if anything may have changed.
        """
        if changed is None or self._error:
            return self._check_all(is_forced=False)
        found: set[str] = set()
        for tag, folder in self._tags.items():
            if not folder.is_settled:
                found |= self._check_tag(tag, folder, is_forced=False)
        for path in changed:
            tag, _, name = path.partition("/")
            if not name or tag not in self._tags:
                found |= self._check_all(is_forced=True)
            elif "/" not in name and suffix_of(name):
                found.add(self._check_file(tag, name))
        return found

    def check_image(self, image_id: str) -> None:
        """Look for the files of an image, which another server may have written just now."""
        for tag in self._tags:
            for name in {*(image_id + s for s in _SUFFIXES), *self.names(tag, image_id)}:
                self._check_file(tag, name)

    def _check_file(self, tag: str, name: str) -> str:
        image_id = image_id_of(label_stem_of(name))
        folder = self._tags[tag]
        names = folder.names
        try:
            is_there = (self.path / tag / name).is_file()
        except OSError as error:
            folder.error, folder.is_settled = error.strerror or str(error), False
            return image_id
        if is_there:
            names.setdefault(image_id, set()).add(name)
        elif image_id in names:
            names[image_id].discard(name)
            if not names[image_id]:
                del names[image_id]
        return image_id

    def _check_all(self, *, is_forced: bool) -> set[str]:
        """Compare the folders with their last state; read those that changed, or all if `is_forced`."""
        try:
            tags = tag_folders(self.path)
        except OSError as error:
            self._error = error.strerror or str(error)
            return set()
        self._error = ""
        found: set[str] = set()
        for tag in self._tags.keys() - tags:
            found |= self._tags.pop(tag).names.keys()
        for tag in tags:
            folder = self._tags.setdefault(tag, _TagFolder())
            found |= self._check_tag(tag, folder, is_forced=is_forced)
        return found

    def _check_tag(self, tag: str, folder: _TagFolder, *, is_forced: bool) -> set[str]:
        path = self.path / tag
        try:
            identity = identity_of(path)
            if not is_forced and folder.is_settled and identity == folder.identity:
                folder.error = ""
                return set()
            is_settled = time.time() - path.stat().st_mtime > SETTLED_S
            names: dict[str, set[str]] = {}
            for name in label_files(path):
                names.setdefault(image_id_of(label_stem_of(name)), set()).add(name)
        except OSError as error:
            folder.error, folder.is_settled = error.strerror or str(error), False
            return set()
        before = folder.names
        folder.names, folder.error = names, ""
        folder.identity, folder.is_settled = identity, is_settled
        return {i for i in before.keys() | names.keys() if before.get(i) != names.get(i)}


def is_tag(name: str) -> bool:
    """Return whether a folder name is an allowed tag."""
    try:
        return require_tag(name) == name
    except DatastoreError:
        return False


def tag_folders(labels: Path) -> set[str]:
    """Return the names of the folders in the labels folder; none if there is no such folder.

    Raises:
        OSError: If it cannot be read.
    """
    return {entry.name for entry in _entries(labels) if _is(entry.is_dir)}


def label_files(folder: Path) -> list[str]:
    """Return the names of the volume files in the folder of a tag; none if there is no such folder.

    Raises:
        OSError: If it cannot be read.
    """
    return [e.name for e in _entries(folder) if suffix_of(e.name) and _is(e.is_file)]


def suffix_in(name: str) -> str:
    """Return the suffix of a label file as its name spells it; `.seg.nrrd` is one suffix."""
    return name.removeprefix(label_stem_of(name))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _is(kind: Callable[[], bool]) -> bool:
    """Return whether an entry is of a kind (`DirEntry.is_dir`, `is_file`); False if that cannot be read."""
    try:
        return kind()
    except OSError:
        return False


def _preference(suffix: str) -> tuple[int, bool]:
    """Return the sort key for choosing among several files of a label; lower case comes first."""
    return SCAN_SUFFIXES.index(suffix.lower().removeprefix(".seg")), not suffix.islower()
