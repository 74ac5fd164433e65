"""`datastore_v2.json`: what MONAI Label remembers of a studies folder, of which the files are the truth.

MONAI Label watches the folder with a thread that changes the index under the requests' hands, writes it in
place, and overwrites what another process wrote (defects 3 and 5). Here the folder is looked at whenever the
index is asked for, a change is made to a copy under a lock that all processes share, and the file is replaced.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel
from pydantic import ValidationError

from lib.errors import DatastoreError
from lib.imaging.dicom_series import holds_dicom
from lib.imaging.formats import SCAN_SUFFIXES
from lib.storage.atomic_files import is_disk_full, replacing
from lib.storage.identifiers import require_image_id, require_tag

logger = logging.getLogger(__name__)

FILE = "datastore_v2.json"
LABELS = "labels"

_Signature = tuple[tuple[str, int], ...]


LabelInfos = Callable[[], Mapping[tuple[str, str], Mapping[str, Any]]]
"""Returns (image id, tag) -> what is known of it, for each label that counts."""


class ImageCatalog(Protocol):
    """Images that are listed elsewhere, and lie in the folder only once they were fetched."""

    @property
    def revision(self) -> int:
        """Changes with the list."""

    def images(self) -> Mapping[str, Mapping[str, Any]]:
        """Return image id -> what is known of it."""


class Index:
    """The images and labels in a studies folder; safe to use from threads and processes at once.

    Args:
        folder: The studies folder.
        known: The labels that count.
        catalog: The images; where None, they are the files and DICOM folders in `folder`.
    """

    def __init__(
        self, folder: Path, *, known: LabelInfos, catalog: ImageCatalog | None = None
    ) -> None:
        self.folder = folder
        self._known = known
        self._listing = catalog
        self._path = folder / FILE
        self._mutex = threading.RLock()
        self._file_lock = FileLock(folder / ".lock")
        self._seen: _Signature = ()
        self._model = LocalDatastoreModel(name="studies", description="", base_path=str(folder))
        self._refused: set[str] = set()

    def snapshot(self) -> LocalDatastoreModel:
        """Return the index as the folder is now; never changed once returned."""
        if self._signature() != self._seen:
            try:
                with self.changing():
                    pass
            except OSError as error:
                if not is_disk_full(error):
                    raise
                # What is on the disk can still be read, and the file is made anew from it later.
                logger.error("%s cannot be written: the disk is full", FILE)
                self._model = self._read()
                self._reconcile(self._model)
        return self._model

    @contextmanager
    def changing(self) -> Iterator[LocalDatastoreModel]:
        """Yield the index as the folder is now, to change; it is written when the block ends well."""
        with self._mutex, self._file_lock:
            # Taken before the look: what changes during it is seen by the next one.
            seen = self._signature()
            stored = self._read()
            changed = stored.model_copy(deep=True)
            self._reconcile(changed)
            yield changed
            if changed != stored or not self._path.exists():
                self._write(changed)
            self._seen, self._model = seen, changed

    def _signature(self) -> _Signature:
        """Return names and times that change whenever an image, a label or the index comes, goes or changes."""
        found = [] if self._listing is None else [("", self._listing.revision)]
        for entry in _entries(self.folder):
            is_counted = entry.is_dir() or entry.name == FILE
            found.append((entry.name, _mtime_ns(entry.path) if is_counted else 0))
            inner = _entries(entry.path) if entry.is_dir() else []
            found += [(e.path, _mtime_ns(e.path)) for e in inner if e.is_dir()]
        return tuple(found)

    def _read(self) -> LocalDatastoreModel:
        """Return the index on disk; an empty one where there is none, or it is damaged (defect 3)."""
        empty = LocalDatastoreModel(name="studies", description="", base_path=str(self.folder))
        try:
            stored = LocalDatastoreModel.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return empty
        except ValidationError as error:
            aside = self._path.with_name(f".{FILE}.damaged-{time.time_ns()}")
            self._path.replace(aside)
            logger.error(
                "%s is damaged (%s): kept as %s, and made anew from the files",
                self._path, error.errors()[0]["msg"], aside.name,
            )  # fmt: skip
            return empty
        stored.base_path = str(self.folder)
        return stored

    def _write(self, model: LocalDatastoreModel) -> None:
        text = json.dumps(model.model_dump(exclude={"base_path"}), indent=2, default=str)
        with replacing(self._path) as beside:
            beside.write_text(text, encoding="utf-8")

    def _reconcile(self, model: LocalDatastoreModel) -> None:
        """Make `model` list what lies in the folder."""
        listed = None if self._listing is None else self._listing.images()
        images = self._images() if listed is None else dict.fromkeys(listed, "")
        for gone in model.objects.keys() - images.keys():
            logger.info("%s: the image is no longer there", gone)
            del model.objects[gone]
        for image_id, suffix in images.items():
            known = model.objects.setdefault(image_id, ImageLabelModel(image=DataModel(ext=suffix)))
            if known.image.ext != suffix or "name" not in known.image.info:
                about = {"ts": int(time.time()), "name": image_id + (suffix or ".nii.gz")}
                known.image = DataModel(ext=suffix, info={**known.image.info, **about})
            if listed is not None:
                known.image.info.update(listed[image_id])
        labelled = self._known()
        tags = [e.name for e in _entries(self.folder / LABELS) if e.is_dir()]
        for tag in {*tags, *model.tags()}:
            self._reconcile_tag(model, tag, labelled if is_tag(tag) else {})

    def _reconcile_tag(
        self,
        model: LocalDatastoreModel,
        tag: str,
        known: Mapping[tuple[str, str], Mapping[str, Any]],
    ) -> None:
        files = _scan_files(self.folder / LABELS / tag)
        for image_id, entry in model.objects.items():
            suffix = files.get(image_id)
            if suffix is None or (image_id, tag) not in known:
                entry.labels.pop(tag, None)
            elif tag not in entry.labels or entry.labels[tag].ext != suffix:
                about = {"ts": int(time.time()), "name": image_id + suffix}
                entry.labels[tag] = DataModel(ext=suffix, info={**known[image_id, tag], **about})

    def _images(self) -> dict[str, str]:
        """Return image id -> suffix of the file, empty for the folder of a DICOM series."""
        found = _scan_files(self.folder)
        for entry in _entries(self.folder):
            if entry.is_dir() and entry.name != LABELS and _is_series(Path(entry.path)):
                found.setdefault(entry.name, "")
        return {name: suffix for name, suffix in sorted(found.items()) if self._is_allowed(name)}

    def _is_allowed(self, name: str) -> bool:
        try:
            require_image_id(name)
        except DatastoreError as error:
            if name not in self._refused:
                self._refused.add(name)
                logger.warning("not listed: %s", error)
            return False
        return True


def entry_of(index: LocalDatastoreModel, image_id: str) -> ImageLabelModel:
    """Return what the index says of an image.

    Raises:
        DatastoreError: If it is not there any more.
    """
    entry = index.objects.get(image_id)
    if entry is None:
        raise DatastoreError(f"{image_id}: the image was removed a moment ago")
    return entry


def label_data(info: Mapping[str, Any], file: Path) -> DataModel:
    """Return what the index says of a label that was written to `file` just now."""
    about = {**info, "ts": int(time.time()), "name": file.name}
    return DataModel(info=about, ext=suffix_of(file.name) or "")


def is_tag(name: str) -> bool:
    """Return whether a folder of labels may be called so."""
    try:
        return require_tag(name) == name
    except DatastoreError:
        return False


def suffix_of(name: str) -> str | None:
    """Return which of `SCAN_SUFFIXES` a file's name ends in, None if in none of them."""
    return next((suffix for suffix in SCAN_SUFFIXES if name.endswith(suffix)), None)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return what lies in `folder`, sorted, but for hidden files; nothing where it is not there."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def scan_files(folder: Path) -> list[tuple[str, str]]:
    """Return name without suffix, and suffix, of each scan file in `folder`, sorted."""
    named = [(e, suffix_of(e.name)) for e in _entries(folder)]
    return [(e.name.removesuffix(s), s) for e, s in named if s and e.is_file()]


def _scan_files(folder: Path) -> dict[str, str]:
    """Return name without suffix -> suffix of the scans in `folder`; of two with one name, the first suffix."""
    found: dict[str, str] = {}
    for name, suffix in scan_files(folder):
        found[name] = min(found.get(name, suffix), suffix, key=SCAN_SUFFIXES.index)
    return found


def _is_series(folder: Path) -> bool:
    return holds_dicom(folder) or any(
        holds_dicom(Path(inner.path)) for inner in _entries(folder) if inner.is_dir()
    )


def _mtime_ns(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
