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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel
from pydantic import ValidationError

from lib.errors import DatastoreError
from lib.imaging.dicom_series import holds_dicom
from lib.imaging.formats import SCAN_SUFFIXES, label_stem_of, stem_of, suffix_of
from lib.storage.atomic_files import is_disk_full, replacing
from lib.storage.identifiers import require_image_id, require_tag

logger = logging.getLogger(__name__)

FILE = "datastore_v2.json"
LABELS = "labels"

_Signature = tuple[tuple[str, int], ...]
"""Names and times of modification in ns."""

LabelInfos = Callable[[], Mapping[tuple[str, str], Mapping[str, Any]]]
"""Returns (image id, tag) -> `info` of the current label version."""


class ImageCatalog(Protocol):
    """A list of images that are kept elsewhere, such as in a PACS, and fetched into the folder."""

    @property
    def revision(self) -> int:
        """Number that changes whenever the list does."""

    def images(self) -> Mapping[str, Mapping[str, Any]]:
        """Return image id -> attributes of the image."""


class Index:
    """The images and labels in a studies folder; safe to use from several threads and processes.

    Args:
        folder: The studies folder.
        label_infos: The current labels.
        catalog: The images; if None, they are the files and DICOM folders in `folder`.
    """

    def __init__(
        self, folder: Path, *, label_infos: LabelInfos, catalog: ImageCatalog | None = None
    ) -> None:
        self.folder = folder
        self._label_infos = label_infos
        self._catalog = catalog
        self._path = folder / FILE
        self._mutex = threading.RLock()
        self._file_lock = FileLock(folder / ".lock")
        self._last_signature: _Signature = ()
        self._model = LocalDatastoreModel(name="studies", description="", base_path=str(folder))
        self._refused_names: set[str] = set()

    def snapshot(self) -> LocalDatastoreModel:
        """Return the index of the folder as it is now; the returned object never changes."""
        if self._signature() != self._last_signature:
            try:
                with self.changing():
                    pass
            except OSError as error:
                if not is_disk_full(error):
                    raise
                # The folder can still be read; the file is written when there is space again.
                logger.error("%s cannot be written: the disk is full", FILE)
                self._model = self._read()
                self._reconcile(self._model)
        return self._model

    @contextmanager
    def changing(self) -> Iterator[LocalDatastoreModel]:
        """Yield the index of the folder as it is now, to be changed; it is written unless the block raises."""
        with self._mutex, self._file_lock:
            # Taken before the folder is read, so that the next access notices changes made during the reading.
            signature = self._signature()
            stored = self._read()
            changed = stored.model_copy(deep=True)
            self._reconcile(changed)
            yield changed
            if changed != stored or not self._path.exists():
                self._write(changed)
            self._last_signature, self._model = signature, changed

    def _signature(self) -> _Signature:
        """Return names and times, which differ after any change of an image, a label or the index."""
        signature = [] if self._catalog is None else [("", self._catalog.revision)]
        for entry in _entries(self.folder):
            has_time = entry.is_dir() or entry.name == FILE
            signature.append((entry.name, _mtime_ns(entry.path) if has_time else 0))
            inner = _entries(entry.path) if entry.is_dir() else []
            signature += [(e.path, _mtime_ns(e.path)) for e in inner if e.is_dir()]
        return tuple(signature)

    def _read(self) -> LocalDatastoreModel:
        """Return the index on disk; an empty one if there is none, or if it is damaged (defect 3)."""
        empty = LocalDatastoreModel(name="studies", description="", base_path=str(self.folder))
        try:
            stored = LocalDatastoreModel.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return empty
        except ValidationError as error:
            aside = self._path.with_name(f".{FILE}.damaged-{time.time_ns()}")
            self._path.replace(aside)
            logger.error(
                "%s is damaged (%s): renamed to %s, and rebuilt from the files",
                self._path, error.errors()[0]["msg"], aside.name,
            )  # fmt: skip
            return empty
        stored.base_path = str(self.folder)
        return stored

    def _write(self, model: LocalDatastoreModel) -> None:
        text = json.dumps(model.model_dump(exclude={"base_path"}), indent=2, default=str)
        with replacing(self._path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _reconcile(self, model: LocalDatastoreModel) -> None:
        """Make `model` list the images and labels in the folder."""
        listed = None if self._catalog is None else self._catalog.images()
        images = self._images() if listed is None else dict.fromkeys(listed, "")
        for removed_id in model.objects.keys() - images.keys():
            logger.info("%s: the image is no longer there", removed_id)
            del model.objects[removed_id]
        for image_id, suffix in images.items():
            entry = model.objects.setdefault(image_id, ImageLabelModel(image=DataModel(ext=suffix)))
            if entry.image.ext != suffix or "name" not in entry.image.info:
                extra = {"ts": int(time.time()), "name": image_id + (suffix or ".nii.gz")}
                entry.image = DataModel(ext=suffix, info={**entry.image.info, **extra})
            if listed is not None:
                entry.image.info.update(listed[image_id])
        infos = self._label_infos()
        tags = [e.name for e in _entries(self.folder / LABELS) if e.is_dir()]
        for tag in {*tags, *model.tags()}:
            self._reconcile_tag(model, tag, infos if is_tag(tag) else {})

    def _reconcile_tag(
        self,
        model: LocalDatastoreModel,
        tag: str,
        infos: Mapping[tuple[str, str], Mapping[str, Any]],
    ) -> None:
        suffixes = _preferred(label_files(self.folder / LABELS / tag))
        for image_id, entry in model.objects.items():
            suffix = suffixes.get(image_id)
            if suffix is None or (image_id, tag) not in infos:
                entry.labels.pop(tag, None)
            elif tag not in entry.labels or entry.labels[tag].ext != suffix:
                extra = {"ts": int(time.time()), "name": image_id + suffix}
                entry.labels[tag] = DataModel(ext=suffix, info={**infos[image_id, tag], **extra})

    def _images(self) -> dict[str, str]:
        """Return image id -> suffix of the file; empty for the folder of a DICOM series."""
        suffixes = _preferred(volume_files(self.folder))
        for entry in _entries(self.folder):
            if entry.is_dir() and entry.name != LABELS and _is_series(Path(entry.path)):
                suffixes.setdefault(entry.name, "")
        return {name: suffix for name, suffix in sorted(suffixes.items()) if self._is_allowed(name)}

    def _is_allowed(self, name: str) -> bool:
        try:
            require_image_id(name)
        except DatastoreError as error:
            if name not in self._refused_names:
                self._refused_names.add(name)
                logger.warning("not listed: %s", error)
            return False
        return True


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


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return the entries of `folder` that are not hidden, sorted; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def volume_files(folder: Path) -> list[tuple[str, str]]:
    """Return stem and suffix, as the file name spells them, of each volume file in `folder`, sorted."""
    names = [e.name for e in _entries(folder) if suffix_of(e.name) and e.is_file()]
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
    """Return the sort key for choosing among several files of an image; lower case comes first."""
    return SCAN_SUFFIXES.index(suffix.lower().removeprefix(".seg")), not suffix.islower()


def _is_series(folder: Path) -> bool:
    return holds_dicom(folder) or any(
        holds_dicom(Path(inner.path)) for inner in _entries(folder) if inner.is_dir()
    )


def _mtime_ns(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
