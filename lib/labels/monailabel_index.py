"""`datastore_v2.json`: MONAI Label's index of a studies folder, derived from the files in the folder.

MONAI Label's own watcher thread changes the index during requests, writes the file in place, and overwrites the
changes of other processes (defects 3 and 5). Here each access compares the folder with the index, changes are
made to a copy under a lock between all processes, and the file is replaced atomically.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel
from pydantic import Field, ValidationError

from lib.errors import DatastoreError
from lib.imaging.formats import SCAN_SUFFIXES, label_stem_of, stem_of, suffix_of
from lib.labels.studies_folder import LABELS, Listing, StudiesFolder
from lib.storage.atomic_files import replacing
from lib.storage.identifiers import printable, require_tag

logger = logging.getLogger(__name__)

FILE = "datastore_v2.json"
STORED_AS = "stored_as"
"""Key of an image's information: path in the studies folder, if that differs from id and suffix."""

_Signature = tuple[object, ...]
"""State of the images, the index and the labels folder; it differs after any change."""

LabelInfos = Callable[[], Mapping[tuple[str, str], Mapping[str, Any]]]
"""Returns (image id, tag) -> `info` of the current label version."""


class ImageCatalog(Protocol):
    """A list of images that are kept elsewhere, such as in a PACS, and fetched into the folder."""

    @property
    def revision(self) -> int:
        """Number that changes whenever the list does."""

    def images(self) -> Mapping[str, Mapping[str, Any]]:
        """Return image id -> attributes of the image."""


class StoredIndex(LocalDatastoreModel):
    """MONAI Label's index, and the entries of images that cannot be read at present."""

    unavailable: dict[str, ImageLabelModel] = Field(default_factory=dict)
    """Image id -> entry, which is kept until the image can be read again, or is removed."""


class Index:
    """The images and labels in a studies folder; safe to use from several threads and processes.

    If the file cannot be written, the index is kept in memory.

    Args:
        folder: Folder of the index and the labels.
        label_infos: The current labels.
        images: The images: a studies folder, or a catalog of images that are kept elsewhere.
    """

    def __init__(
        self, folder: Path, *, label_infos: LabelInfos, images: StudiesFolder | ImageCatalog
    ) -> None:
        self.folder = folder
        self._label_infos = label_infos
        self._images = images
        self._path = folder / FILE
        self._mutex = threading.RLock()
        self._file_lock = FileLock(folder / ".lock")
        self._last_signature: _Signature = ()
        self._model = self._empty()

    def _empty(self) -> StoredIndex:
        return StoredIndex(name="studies", description="", base_path=str(self.folder))

    def snapshot(self) -> StoredIndex:
        """Return the index of the folder as it is now; the returned object never changes."""
        signature = self._signature()
        if signature != self._last_signature:
            try:
                with self.changing():
                    pass
            except OSError as error:
                # The folder can still be read; the file is written with the next change that can be.
                logger.error("%s cannot be written: %s", self._path, error.strerror or error)
                with self._mutex:
                    model = self._read().model_copy(deep=True)
                    self._reconcile(model, signature)
                    self._last_signature, self._model = signature, model
        return self._model

    def image_path(self, image_id: str) -> Path | None:
        """Return the path of an image, which exists once the image was fetched; None if it is not listed."""
        if image_id not in self.snapshot().objects:
            return None
        if not isinstance(self._images, StudiesFolder):
            return self.folder / image_id
        image = self._listing.images.get(image_id)
        return None if image is None else self._images.path / image.path

    def image_paths(self) -> dict[str, Path]:
        """Return image id -> path of all images; see `image_path`."""
        ids = self.snapshot().objects
        if not isinstance(self._images, StudiesFolder):
            return {image_id: self.folder / image_id for image_id in ids}
        images = self._listing.images
        return {i: self._images.path / images[i].path for i in ids if i in images}

    @contextmanager
    def changing(self) -> Iterator[StoredIndex]:
        """Yield the index of the folder as it is now, to be changed; it is written unless the block raises."""
        with self._mutex, self._file_lock:
            # Taken before the folder is read, so that the next access notices changes made during the reading.
            signature = self._signature()
            stored = self._read()
            changed = stored.model_copy(deep=True)
            self._reconcile(changed, signature)
            yield changed
            if changed != stored or not self._path.exists():
                self._write(changed)
            self._last_signature, self._model = signature, changed

    def _signature(self) -> _Signature:
        images = self._images
        current = images.listing() if isinstance(images, StudiesFolder) else images.revision
        labels = self.folder / LABELS
        folders = (self._path, labels, *(labels / tag for tag in tag_folders(labels)))
        return (current, *((str(path), _mtime_ns(path)) for path in folders))

    @property
    def _listing(self) -> Listing:
        """The images of the studies folder that the last snapshot lists."""
        return _listing_of(self._last_signature)

    def _read(self) -> StoredIndex:
        """Return the index on disk; an empty one if there is none, or if it is damaged (defect 3).

        If the file cannot be read, the index in memory is returned.
        """
        try:
            stored: StoredIndex = StoredIndex.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return self._empty()
        except OSError as error:
            logger.error("%s cannot be read: %s", self._path, error.strerror or error)
            return self._model
        except ValidationError as error:
            aside = self._path.with_name(f".{FILE}.damaged-{time.time_ns()}")
            with suppress(OSError):
                self._path.replace(aside)
            logger.error(
                "%s is damaged (%s): renamed to %s, and rebuilt from the files",
                self._path, error.errors()[0]["msg"], aside.name,
            )  # fmt: skip
            return self._empty()
        stored.base_path = str(self.folder)
        return stored

    def _write(self, model: StoredIndex) -> None:
        text = json.dumps(model.model_dump(exclude={"base_path"}), indent=2, default=str)
        with replacing(self._path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _reconcile(self, model: StoredIndex, signature: _Signature) -> None:
        """Make `model` list the images and labels in the folder."""
        if isinstance(self._images, StudiesFolder):
            _reconcile_folder(model, _listing_of(signature))
        else:
            _reconcile_catalog(model, self._images.images())
        infos = self._label_infos()
        for tag in {*tag_folders(self.folder / LABELS), *model.tags()}:
            self._reconcile_tag(model, tag, infos if is_tag(tag) else {})

    def _reconcile_tag(
        self,
        model: StoredIndex,
        tag: str,
        infos: Mapping[tuple[str, str], Mapping[str, Any]],
    ) -> None:
        try:
            suffixes = _preferred(label_files(self.folder / LABELS / tag))
        except OSError as error:
            # The labels are in the history, so they stay listed.
            logger.error("labels/%s cannot be read: %s", tag, error.strerror or error)
            return
        for image_id, entry in model.objects.items():
            suffix = suffixes.get(image_id)
            if suffix is None or (image_id, tag) not in infos:
                entry.labels.pop(tag, None)
            elif tag not in entry.labels or entry.labels[tag].ext != suffix:
                extra = {"ts": int(time.time()), "name": image_id + suffix}
                entry.labels[tag] = DataModel(ext=suffix, info={**infos[image_id, tag], **extra})


def _listing_of(signature: _Signature) -> Listing:
    listing = signature[0] if signature else None
    return listing if isinstance(listing, Listing) else Listing({}, {})


def _reconcile_folder(model: StoredIndex, listing: Listing) -> None:
    is_readable = "." not in listing.refused
    for image_id in model.unavailable.keys() - listing.refused.keys():
        if is_readable and image_id not in listing.images:
            del model.unavailable[image_id]
    for image_id in model.objects.keys() - listing.images.keys():
        entry = model.objects.pop(image_id)
        if image_id in listing.refused or not is_readable:
            logger.warning("%s: %s", image_id, listing.refused.get(image_id, "cannot be read"))
            model.unavailable[image_id] = entry
        else:
            logger.info("%s: the image is no longer there", image_id)
    for image_id, image in listing.images.items():
        former = model.unavailable.pop(image_id, None)
        entry = _listed(model, image_id, image.suffix, former)
        if image.path != image_id + image.suffix:
            entry.image.info[STORED_AS] = printable(image.path)


def _reconcile_catalog(model: StoredIndex, listed: Mapping[str, Mapping[str, Any]]) -> None:
    for image_id in model.objects.keys() - listed.keys():
        logger.info("%s: the image is no longer there", image_id)
        del model.objects[image_id]
    for image_id, about in listed.items():
        _listed(model, image_id, "", None).image.info.update(about)


def _listed(
    model: StoredIndex, image_id: str, suffix: str, former: ImageLabelModel | None
) -> ImageLabelModel:
    """Return the entry of an image, which is added if it is missing; `former` is the entry to add."""
    new = former or ImageLabelModel(image=DataModel(ext=suffix))
    entry = model.objects.setdefault(image_id, new)
    if entry.image.ext != suffix or "name" not in entry.image.info:
        extra = {"ts": int(time.time()), "name": image_id + (suffix or ".nii.gz")}
        entry.image = DataModel(ext=suffix, info={**entry.image.info, **extra})
    return entry


def entry_of(index: LocalDatastoreModel, image_id: str) -> ImageLabelModel:
    """Return the entry of an image.

    Raises:
        DatastoreError: If the image was removed meanwhile.
    """
    entry = index.objects.get(image_id)
    if entry is None:
        raise DatastoreError(f"{image_id}: the image was removed a moment ago")
    return entry


def label_data(info: Mapping[str, Any], file: Path) -> DataModel:
    """Return the entry of a label that was written to `file` just now."""
    extra = {**info, "ts": int(time.time()), "name": file.name}
    return DataModel(info=extra, ext=suffix_of(file) or "")


def is_tag(name: str) -> bool:
    """Return whether a folder name is an allowed tag."""
    try:
        return require_tag(name) == name
    except DatastoreError:
        return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of `folder` that are not hidden, sorted; none if there is no such folder.

    Raises:
        OSError: If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def tag_folders(labels: Path) -> list[str]:
    """Return the names of the folders in the labels folder; none if it cannot be read."""
    try:
        return [e.name for e in _entries(labels) if _is(e.is_dir)]
    except OSError:
        return []


def _is(kind: Callable[[], bool]) -> bool:
    """Return whether an entry is of a kind (`DirEntry.is_dir`, `is_file`); False if that cannot be read."""
    try:
        return kind()
    except OSError:
        return False


def volume_files(folder: Path) -> list[tuple[str, str]]:
    """Return stem and suffix, as the file name spells them, of each volume file in `folder`, sorted.

    Raises:
        OSError: If the folder cannot be read.
    """
    names = [e.name for e in _entries(folder) if suffix_of(e.name) and _is(e.is_file)]
    return [(stem_of(name), name.removeprefix(stem_of(name))) for name in names]


def label_files(folder: Path) -> list[tuple[str, str]]:
    """Return image id and suffix of each volume file in the folder of a tag; `.seg.nrrd` is one suffix."""
    names = [stem + suffix for stem, suffix in volume_files(folder)]
    return [(label_stem_of(name), name.removeprefix(label_stem_of(name))) for name in names]


def _preferred(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return stem -> suffix of files; if two share a stem, the preferred suffix."""
    suffixes: dict[str, str] = {}
    for name, suffix in files:
        suffixes[name] = min(suffixes.get(name, suffix), suffix, key=_preference)
    return suffixes


def _preference(suffix: str) -> tuple[int, bool]:
    """Return the sort key for choosing among several files of a label; lower case comes first."""
    return SCAN_SUFFIXES.index(suffix.lower().removeprefix(".seg")), not suffix.islower()


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
