"""Index of a store: its images and their labels, kept in memory.

It is derived from the studies folder or the list of a PACS, the label versions, the files in `labels/<tag>/`,
and the attributes that clients gave. Each access updates the images that changed, and nothing else.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

from lib.errors import DatastoreError
from lib.labels.attributes import STORED_AS, Attributes
from lib.labels.current_labels import CurrentVersions
from lib.labels.folder_changes import FolderChanges
from lib.labels.history import FINAL, SUFFIX, LabelHistory
from lib.labels.label_folders import LabelFolders, is_tag
from lib.labels.studies_folder import Listing, StudiesFolder
from lib.storage.atomic_files import finite
from lib.storage.identifiers import printable
from lib.storage.image_changes import ImageChanges
from lib.storage.process_locks import process_lock
from lib.storage.tables import LabelVersion

LOCK = "store.lock"
"""Lock file beside the database, of the working copies and the studies folder."""


class ImageCatalog(Protocol):
    """A list of images that are kept elsewhere, such as in a PACS, and fetched into the folder."""

    @property
    def revision(self) -> int:
        """Number that changes whenever the list does."""

    def images(self) -> Mapping[str, Mapping[str, Any]]:
        """Return image id -> attributes of the image."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Suffix and attributes of an image or a label."""

    suffix: str
    """As the file name spells it; empty for the folder of a DICOM series."""
    info: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of MONAI Label's index."""
        return {"info": dict(self.info), "ext": self.suffix}


@dataclass(frozen=True)
class StoredImage:
    """An image, and its labels."""

    image: StoredFile
    labels: Mapping[str, StoredFile]
    """Tag -> label."""

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of MONAI Label's index."""
        labels = {tag: label.as_dict() for tag, label in self.labels.items()}
        return {"image": self.image.as_dict(), "labels": labels}

    @cached_property
    def json_text(self) -> str:
        """The entry as JSON; made once, as a list of all images holds thousands."""
        return json.dumps(finite(self.as_dict()), default=str)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The index at one moment; never changed."""

    images: Mapping[str, StoredImage] = field(default_factory=dict)
    """Image id -> entry, sorted by id."""
    label_tags: Mapping[str, int] = field(default_factory=dict)
    """Tag -> number of labels."""
    listing: Listing = field(default_factory=lambda: Listing({}, {}))
    """The studies folder; empty for a catalog."""

    @cached_property
    def unlabelled(self) -> tuple[str, ...]:
        """The images without a final label."""
        return tuple(i for i, entry in self.images.items() if FINAL not in entry.labels)

    @cached_property
    def objects_json(self) -> bytes:
        """The entries of all images as a JSON object."""
        entries = (f"{json.dumps(i)}: {entry.json_text}" for i, entry in self.images.items())
        return f"{{{', '.join(entries)}}}".encode()

    def label(self, image_id: str, tag: str) -> StoredFile | None:
        """Return an image's label; None if there is none."""
        entry = self.images.get(image_id)
        return None if entry is None else entry.labels.get(tag)

    def entry(self, image_id: str) -> StoredImage:
        """Return the entry of an image.

        Raises:
            DatastoreError: If the image was removed meanwhile.
        """
        entry = self.images.get(image_id)
        if entry is None:
            raise DatastoreError(f"{image_id}: the image was removed a moment ago")
        return entry


class Index:
    """The images and labels of a store; safe to use from several threads and processes.

    Before `watch` is called, each access compares all folders with their last state.

    Args:
        folder: Folder of the labels.
        history: The label versions.
        images: The images: a studies folder, or a catalog of images that are kept elsewhere.
    """

    def __init__(
        self, folder: Path, *, history: LabelHistory, images: StudiesFolder | ImageCatalog
    ) -> None:
        self.folder = folder
        self.attributes = Attributes(history.database)
        self.label_files = LabelFolders(folder)
        self._history = history
        self._images = images
        # Paths are made once: it takes 15 microseconds, and there may be thousands.
        self._path_of = cache(images.path.joinpath) if isinstance(images, StudiesFolder) else Path
        folders = [self.label_files.path]
        if isinstance(images, StudiesFolder):
            is_inside = folder.absolute().is_relative_to(images.path.absolute())
            folders = [images.path, *([] if is_inside else folders)]
        self._changes = FolderChanges(folders, self._changed_folders)
        self._records = ImageChanges(history.database)
        self._lock_file = history.folder.parent / LOCK
        self._lock = threading.RLock()
        self._lock_depth = 0
        self._mutex = threading.RLock()
        self._snapshot = Snapshot()
        self._revision: int | None = None
        self._about: Mapping[str, Mapping[str, Any]] = {}
        self._infos: dict[str, dict[str, Any]] = {}
        self._label_infos: dict[int, dict[str, Any]] = {}
        self._unseen: set[str] | None = None
        self.attributes.read_index_file(folder, history.current_versions())

    def watch(self) -> FolderChanges:
        """Watch the folders from now on, so that an access looks only at what changed; return the watch."""
        return self._changes.start()

    @contextmanager
    def locked(self) -> Iterator[Snapshot]:
        """Hold the lock of the store, between threads and processes, and yield the index as it is now."""
        with self._lock:
            self._lock_depth += 1
            try:
                with process_lock(self._lock_file) if self._lock_depth == 1 else nullcontext():
                    yield self.snapshot()
            finally:
                self._lock_depth -= 1

    def changed(self, *paths: Path) -> None:
        """Note files that this process added, replaced or removed: the next access looks at them."""
        for path in paths:
            self._changes.add(path)

    def snapshot(self) -> Snapshot:
        """Return the index as it is now."""
        with self._mutex:
            paths = self._changes.take()
            listing, changed = self._listed(paths)
            changed |= self._check_labels(paths)
            by_database = self._records.take()
            if by_database is None:
                changed |= {*self._snapshot.images, *self._image_ids(listing)}
                changed |= self.label_files.image_ids()
            else:
                for image_id in by_database:
                    self.label_files.check_image(image_id)
                changed |= by_database
            if changed or listing is not self._snapshot.listing:
                self._read_attributes(None if by_database is None else by_database)
                self._snapshot = self._updated(listing, changed)
            return self._snapshot

    def take_changed(self) -> set[str] | None:
        """Return the images that changed since the last call; None for the first one, and with no watch.

        For one reader only. An image has changed if its file, a file of a label, or a row about it did.
        """
        with self._mutex:
            self.snapshot()
            unseen, self._unseen = self._unseen, set()
            return unseen if self._changes.is_running else None

    def label_paths(self, image_ids: Collection[str] | None) -> list[tuple[str, str, Path]]:
        """Return image id, tag and path of each label file of images; of all images if None.

        One image may have several files in a tag, with different suffixes.
        """
        files = self.label_files
        with self._mutex:
            chosen = sorted(files.image_ids() if image_ids is None else image_ids)
            return [
                (image_id, tag, files.path / tag / name)
                for tag in filter(is_tag, files.tags())
                for image_id in chosen
                for name in files.names(tag, image_id)
            ]

    def paths_of_label(self, image_id: str, tag: str) -> list[Path]:
        """Return the files of one label, as they are on the disk at this moment."""
        with self._mutex:
            self.label_files.check_image(image_id)
            return [self.label_files.path / tag / n for n in self.label_files.names(tag, image_id)]

    def image_path(self, image_id: str) -> Path | None:
        """Return the path of an image, which exists once the image was fetched; None if it is not listed."""
        return self.path_in(self.snapshot(), image_id)

    def path_in(self, snapshot: Snapshot, image_id: str) -> Path | None:
        """Return the path of an image in a snapshot; see `image_path`."""
        if image_id not in snapshot.images:
            return None
        if not isinstance(self._images, StudiesFolder):
            return self.folder / image_id
        return self._path_of(snapshot.listing.images[image_id].path)

    def _changed_folders(self) -> list[str]:
        labels = self.label_files.path.absolute()
        changed = [str(labels / tag) for tag in self.label_files.changed_folders()]
        if isinstance(self._images, StudiesFolder):
            root = self._images.path.absolute()
            changed += [str(root / path) for path in self._images.changed_folders()]
        return changed

    def _listed(self, paths: Collection[str] | None) -> tuple[Listing, set[str]]:
        """Return the listing of the studies folder, and the images that differ from the last snapshot."""
        last = self._snapshot.listing
        if not isinstance(self._images, StudiesFolder):
            revision = self._images.revision
            if revision == self._revision:
                return last, set()
            self._revision, self._about = revision, self._images.images()
            return last, {*self._about, *self._snapshot.images}
        inside = None if paths is None else _relative(paths, self._images.path)
        listing = self._images.listing(inside)
        if listing is last:
            return last, set()
        before = last.images
        changed = {i for i, entry in listing.images.items() if before.get(i) is not entry}
        refused = {i for i, _ in listing.refused.items() ^ last.refused.items()}
        return listing, changed | refused | (before.keys() - listing.images.keys())

    def _image_ids(self, listing: Listing) -> Collection[str]:
        if isinstance(self._images, StudiesFolder):
            return listing.images.keys()
        return self._about.keys()

    def _check_labels(self, paths: Collection[str] | None) -> set[str]:
        inside = None if paths is None else _relative(paths, self.label_files.path)
        return self.label_files.check(inside)

    def _read_attributes(self, changed: set[str] | None) -> None:
        versions = self._history.current_versions()
        if changed is None:
            self._infos = self.attributes.of_images(None)
            self._label_infos = self.attributes.of_labels(None)
            return
        infos = self.attributes.of_images(changed)
        for image_id in changed:
            self._infos.pop(image_id, None)
        self._infos |= infos
        ids = [v.id for i in changed for v in versions.of_image(i).values()]
        self._label_infos |= self.attributes.of_labels(ids)

    def _updated(self, listing: Listing, changed: Collection[str]) -> Snapshot:
        last, versions = self._snapshot, self._history.current_versions()
        images, counts = dict(last.images), Counter(last.label_tags)
        for image_id in changed:
            before = images.get(image_id)
            entry = self._entry(image_id, listing, self._about.get(image_id), versions)
            counts.subtract(() if before is None else before.labels.keys())
            counts.update(() if entry is None else entry.labels.keys())
            if entry is not None:
                images[image_id] = entry
            elif before is not None:
                del images[image_id]
        if images.keys() != last.images.keys():
            images = dict(sorted(images.items()))
        if self._unseen is not None:
            self._unseen |= set(changed)
        return Snapshot(images, {t: n for t, n in sorted(counts.items()) if n}, listing)

    def _entry(
        self,
        image_id: str,
        listing: Listing,
        about: Mapping[str, Any] | None,
        versions: CurrentVersions,
    ) -> StoredImage | None:
        """Return the entry of an image; None if it is not listed.

        Args:
            image_id: The image.
            listing: The studies folder.
            about: Attributes in the catalog; None if the catalog does not list it.
            versions: The current labels.
        """
        if isinstance(self._images, StudiesFolder):
            file = listing.images.get(image_id)
            if file is None:
                return None
            suffix, about = file.suffix, {}
            if file.path != image_id + file.suffix:
                about = {STORED_AS: printable(file.path)}
        elif about is None:
            return None
        else:
            suffix = ""
        last = self._snapshot.images.get(image_id)
        ts = int(time.time()) if last is None else last.image.info["ts"]
        name = image_id + (suffix or SUFFIX)
        info = {"ts": ts, **self._infos.get(image_id, {}), "name": name, **about}
        labels = {}
        for tag, version in sorted(versions.of_image(image_id).items()):
            label = self._label(version)
            if label is not None:
                labels[tag] = label
        return StoredImage(StoredFile(suffix, info), labels)

    def _label(self, version: LabelVersion) -> StoredFile | None:
        """Return the entry of a label; None if its file is missing."""
        image_id, tag = version.image_id, version.tag
        suffix = self.label_files.suffix(tag, image_id)
        if suffix is None and self.label_files.is_unreadable(tag):
            # It is in the history, so it stays listed.
            suffix = SUFFIX
        if suffix is None or not is_tag(tag):
            return None
        ts = int(version.submitted_at.timestamp())
        added = self._label_infos.get(version.id, {})
        return StoredFile(suffix, {**version.info, **added, "ts": ts, "name": image_id + suffix})


def _relative(paths: Collection[str], folder: Path) -> set[str]:
    """Return those of absolute paths that are in a folder, relative to it; empty for the folder itself."""
    root = str(folder.absolute())
    inside = {path[len(root) + 1 :] for path in paths if path.startswith(f"{root}/")}
    return {*inside, ""} if root in paths else inside
