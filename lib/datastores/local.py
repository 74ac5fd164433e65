"""The studies folder as a MONAI Label store: scans, DICOM folders, and the labels drawn on them."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore

from lib.errors import DatastoreError, ImageExistsError, ReaderStoppedError, ScanError
from lib.imaging.archives import unpack_zip
from lib.imaging.formats import SCAN_SUFFIXES, stem_of, suffix_of
from lib.imaging.scans import read_ct
from lib.isolation.reader_pool import readers
from lib.labels.current_labels import CurrentVersions
from lib.labels.folder_changes import FolderChanges
from lib.labels.folder_watcher import FolderWatcher
from lib.labels.history import CLIENT, FINAL
from lib.labels.store_index import ImageCatalog, Index, Snapshot
from lib.labels.studies_folder import LABELS, StudiesFolder
from lib.labels.submission import LabelSubmissions, StoreDependencies
from lib.retrain.training_set import LabelledCase
from lib.storage.atomic_files import copy_file, digest_of
from lib.storage.identifiers import require_image_id, require_tag
from lib.storage.leftovers import scratch_folder
from lib.storage.storage_errors import storing

logger = logging.getLogger(__name__)

REMOVED = ".removed"
"""Folder of removed files: no request destroys a scan or a contour."""


class FolderStore(LocalDatastore):
    """A studies folder in MONAI Label's layout; the folder of a DICOM series is an image too.

    Scans and labels are validated before they are kept: an image is one regular CT, a label lies on its image's
    grid and holds organs. Labels are stored with the values of `labels`, as compressed NIfTI.

    Each label is a version that is kept for ever (`lib.labels.history`), `labels/<tag>/` holds a copy of the
    current one, and a change by hand in that folder becomes a version too (`watcher`).

    Args:
        folder: Folder of the labels and the index.
        dependencies: Label values, history, quarantine and callbacks.
        scans: The studies folder; by default `folder`.
        catalog: Images that are listed elsewhere; if None, the images are the files and folders in `scans`.
    """

    def __init__(
        self,
        folder: Path,
        dependencies: StoreDependencies,
        *,
        scans: Path | None = None,
        catalog: ImageCatalog | None = None,
    ) -> None:
        # MONAI Label's own __init__ is not called: it starts a thread, and walks and writes for each change.
        self._folder = folder
        self._datastore_path = str(folder)
        self.labels = dependencies.labels
        """TG-263 name -> value of the stored labels."""
        self.history = dependencies.history
        """The label versions."""
        self.quarantine = dependencies.quarantine
        for tag in (FINAL, "original"):
            (folder / LABELS / tag).mkdir(parents=True, exist_ok=True)
        self._studies = StudiesFolder(
            scans or folder,
            reserved=_reserved(folder, scans or folder),
            harmful=readers().refused,
        )
        self._labelled: Sequence[LabelledCase] = ()
        self._labelled_state: tuple[object, ...] = ()
        self._labelled_mutex = threading.Lock()
        self._index = Index(folder, history=self.history, images=catalog or self._studies)
        self.submissions = LabelSubmissions(
            folder, self._index, dependencies, image=self.require_image, set_aside=self._set_aside
        )
        self.watcher = FolderWatcher(folder, self.history, self._index, self.submissions)
        self.refresh()

    @property
    def folder(self) -> Path:
        """Folder of the labels, and of the scans unless a PACS has them."""
        return self._folder

    def watch(self) -> FolderChanges:
        """Watch the folders from now on instead of comparing them at each access; return the watch."""
        return self._index.watch()

    def name(self) -> str:
        """Return the name of the store."""
        return "studies"

    def description(self) -> str:
        """Return the description of the store."""
        return ""

    def refresh(self) -> None:
        """Update the index; every other method does so itself."""
        self._index.snapshot()

    def list_images(self) -> list[str]:
        """Return the image ids, sorted."""
        return list(self._index.snapshot().images)

    def get_labeled_images(
        self,
        label_tag: str | None = None,  # noqa: ARG002 - base signature
        labels: list[str] | None = None,  # noqa: ARG002 - base signature
    ) -> list[str]:
        """Return the images with a final label, sorted."""
        images = self._index.snapshot().images
        return [image_id for image_id, entry in images.items() if FINAL in entry.labels]

    def get_unlabeled_images(
        self,
        label_tag: str | None = None,  # noqa: ARG002 - base signature
        labels: list[str] | None = None,  # noqa: ARG002 - base signature
    ) -> list[str]:
        """Return the images without a final label, sorted."""
        return list(self.unlabelled_images())

    def unlabelled_images(self) -> tuple[str, ...]:
        """Return the images without a final label, sorted; the same object as long as nothing changed."""
        return self._index.snapshot().unlabelled

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return tag -> label id, which is the image's, of the labels of an image."""
        entry = self._index.snapshot().images.get(image_id)
        return {} if entry is None else dict.fromkeys(entry.labels, image_id)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return the attributes of a label; empty if there is none."""
        label = self._index.snapshot().label(label_id, label_tag)
        return {} if label is None else dict(label.info)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a label as text; empty if there is none."""
        label = self._index.snapshot().label(label_id, label_tag)
        path = None if label is None else self._label_path(label_id, label_tag, label.suffix)
        return str(path or "")

    def status(self) -> dict[str, Any]:
        """Return the numbers of images, of images with a final label, and of labels by tag."""
        snapshot = self._index.snapshot()
        tags = dict(snapshot.label_tags)
        return {
            "total": len(snapshot.images),
            "completed": tags.get(FINAL, 0),
            "label_tags": tags,
        }

    def json(self) -> dict[str, Any]:
        """Return the index in the form of MONAI Label's `datastore_v2.json`."""
        index: dict[str, Any] = json.loads(self.json_text())
        del index["refused"]
        return index

    def json_text(self) -> bytes:
        """Return the index as JSON, with the refused entries; prepared, as it may list thousands of images."""
        snapshot = self._index.snapshot()
        head = {
            "name": self.name(),
            "description": self.description(),
            "images_dir": "",
            "labels_dir": LABELS,
            "refused": dict(self.refused_images()),
        }
        return json.dumps(head)[:-1].encode() + b', "objects": ' + snapshot.objects_json + b"}"

    def require_image(self, image_id: str) -> Path:
        """Return the path of an image that can be read now.

        Raises:
            DatastoreError: If there is no such image.
            ScanError: If its file, or a file in its folder, cannot be read.
        """
        path = self.image_location(image_id)
        return path if self._studies.is_readable(path) else self.image_location(image_id)

    def dicom_folders(self) -> dict[str, Path]:
        """Return image id -> folder, of the images that are DICOM series."""
        snapshot = self._index.snapshot()
        folders = {
            image_id: self._index.path_in(snapshot, image_id)
            for image_id, entry in snapshot.images.items()
            if not entry.image.suffix
        }
        return {image_id: folder for image_id, folder in folders.items() if folder is not None}

    def available_images(self) -> Collection[str] | None:
        """Return the images that can be read without fetching them first; None if all can."""
        return None

    def refused_images(self) -> Mapping[str, str]:
        """Return image id, or path in the studies folder -> why it is no image, or cannot be contoured."""
        return self._index.snapshot().listing.refused

    def image_location(self, image_id: str) -> Path:
        """Return the path of an image, which exists once the image was fetched.

        Raises:
            DatastoreError: If there is no such image.
            ScanError: If it is refused (`refused_images`).
        """
        # Defect 11: only an id that the store lists is ever turned into a path.
        path = self._index.image_path(require_image_id(image_id))
        if path is not None:
            return path
        reason = self.refused_images().get(image_id)
        if reason is not None:
            raise ScanError(f"{image_id}: {reason.removeprefix(f'{image_id}: ')}")
        raise DatastoreError(f"{image_id}: no such image; GET /datastore/?output=all lists them")

    def require_label(self, image_id: str, tag: str) -> Path:
        """Return the path of an image's current label.

        Raises:
            DatastoreError: If there is no such image or label.
        """
        self.image_location(image_id)
        label = self._index.snapshot().label(image_id, require_tag(tag))
        if label is None:
            raise DatastoreError(f"{image_id}: there is no label with the tag {tag!r}")
        path = self._label_path(image_id, tag, label.suffix)
        return self.watcher.readable(path, image_id, tag)

    def _label_path(self, image_id: str, tag: str, suffix: str) -> Path:
        return self._folder / LABELS / tag / (image_id + suffix)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the attributes of an image; `path` only if it is one file, which Slicer can load."""
        entry, path = (
            self._index.snapshot().images.get(image_id),
            self._index.image_path(image_id),
        )
        if entry is None or path is None:
            return {}
        is_file = path.is_file()
        return {**entry.image.info, **({"path": str(path.resolve())} if is_file else {})}

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image as text; empty if there is no such image."""
        return str(self._index.image_path(image_id) or "")

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store a scan file, or a zip of one DICOM series, and return its id.

        Raises:
            DatastoreError: If the id is not allowed.
            ImageExistsError: If another scan has the id already.
            ScanError: If it is not one regular CT. Nothing is stored then.
            StorageError: If the studies folder cannot be written.
        """
        source = Path(image_filename)
        suffix = suffix_of(source)
        if suffix is None and source.suffix != ".zip":
            raise ScanError(
                f"{source.name}: expected one of {', '.join(SCAN_SUFFIXES)}, or a .zip of one DICOM series"
            )
        image_id = require_image_id(image_id or stem_of(source).removesuffix(".zip"))
        # A zip is unpacked beside the scans, so that the series can be renamed to its place.
        unpacking = nullcontext() if suffix else scratch_folder(self._studies.path)
        with storing(image_id, "so the scan was not stored"), unpacking as scratch:
            scan = source if scratch is None else unpack_zip(source, scratch / "series", image_id)
            try:
                read_ct(scan, image_id=image_id)
            except ReaderStoppedError as error:
                reason = self.submissions.refuse(source, {"image": image_id}, str(error))
                raise ReaderStoppedError(reason) from error
            self._add_scan(image_id, scan, suffix or "", image_info or {})
        return image_id

    def _add_scan(self, image_id: str, scan: Path, suffix: str, info: dict[str, Any]) -> None:
        """Put a valid scan into the studies folder, unless it is there already.

        Raises:
            ImageExistsError: If another scan has the id already.
        """
        with self._index.locked() as index:
            if image_id in index.images:
                if _content(scan) != _content(self.image_location(image_id)):
                    raise ImageExistsError(
                        f"{image_id}: another scan has this id already; choose another id, or remove the "
                        "old one"
                    )
                return
            target = self._studies.path / f"{image_id}{suffix}"
            if target.exists() or target.is_symlink():
                reason = self.refused_images().get(image_id, "is no image")
                raise ImageExistsError(
                    f"{image_id}: {target.name} exists already ({reason}); choose another id, or "
                    "remove it"
                )
            self._index.attributes.set_image(image_id, {**info, "ts": int(time.time())})
            if scan.is_dir():
                scan.rename(target)
            else:
                copy_file(scan, target)
            self._index.changed(target)

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        *,
        source: str = CLIENT,
    ) -> str:
        """Submit a label (`LabelSubmissions.submit`), and return its id, which is the image's."""
        file = Path(label_filename)
        return self.submissions.submit(
            image_id, label_tag, file, label_info, source=source
        ).image_id

    def labelled_cases(self) -> Sequence[LabelledCase]:
        """Return the cases with a final label whose image is available; their label files never change.

        The same object is returned as long as nothing changed.
        """
        snapshot, versions = self._index.snapshot(), self.history.current_versions()
        state = (snapshot, versions, self.available_images())
        with self._labelled_mutex:
            if self._labelled_state != state:
                self._labelled_state, self._labelled = state, self._labelled_now(*state)
            return self._labelled

    def _labelled_now(
        self, snapshot: Snapshot, versions: CurrentVersions, available: Collection[str] | None
    ) -> Sequence[LabelledCase]:
        known = {(case.image_id, case.digest): case for case in self._labelled}
        cases = []
        for version in versions.sorted(FINAL):
            image = self._index.path_in(snapshot, version.image_id)
            # If the scan was removed, or cannot be read, its labels are kept until it returns.
            if image is None or not (available is None or version.image_id in available):
                continue
            case = known.get((version.image_id, version.digest))
            if case is None or (case.image, case.number) != (image, version.number):
                case = LabelledCase(
                    image_id=version.image_id,
                    image=image,
                    label=self.history.path(version.digest),
                    digest=version.digest,
                    number=version.number,
                    organs=frozenset(version.organs),
                    doubts=tuple(version.doubts),
                    submitted_at=version.submitted_at,
                )
            cases.append(case)
        return cases

    def remove_image(self, image_id: str) -> None:
        """Move an image and its labels out of the store, into `REMOVED`.

        Raises:
            DatastoreError: If there is no such image.
        """
        image = self.require_image(image_id)
        for tag in self.get_labels_by_image_id(image_id):
            self.remove_label(image_id, tag)
        with self._index.locked():
            if not image.exists():
                raise DatastoreError(f"{image_id}: no such image; it was removed meanwhile")
            self._set_aside(image)
            self._index.attributes.remove_image(image_id)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Move one label of an image out of the store, into `REMOVED`, and hide its versions.

        Raises:
            DatastoreError: If there is no such label.
        """
        self.require_label(label_id, label_tag)
        with self._index.locked() as index:
            # The file is moved first: after a kill in between, it counts as a file that was removed by hand.
            label = index.entry(label_id).labels.get(label_tag)
            if label is not None:
                self._set_aside(self._label_path(label_id, label_tag, label.suffix))
            self.history.hide(label_id, label_tag)

    def _set_aside(self, path: Path) -> None:
        root = self._folder if path.is_relative_to(self._folder) else self._studies.path
        target = root / REMOVED / str(time.time_ns()) / path.relative_to(root)
        target.parent.mkdir(parents=True)
        path.rename(target)
        self._index.changed(path)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add attributes to an image.

        Raises:
            DatastoreError: If there is no such image.
        """
        self.image_location(image_id)
        self._index.attributes.update_image(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add attributes to a label.

        Raises:
            DatastoreError: If there is no such label.
        """
        self.require_label(label_id, label_tag)
        version = self.history.newest(label_id, label_tag)
        if version is not None:
            self._index.attributes.update_label(version, info)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:  # noqa: FBT001, FBT002 - base signature
        """Return id, image and final label of every labelled case, with paths, sorted by id."""
        root, snapshot = self._studies.path, self._index.snapshot()

        def label_path(image_id: str, suffix: str) -> Path:
            path = self._label_path(image_id, FINAL, suffix)
            path = self.watcher.readable(path, image_id, FINAL)
            return path if full_path else path.relative_to(self._folder)

        return [
            {
                "id": image_id,
                "image": str(path if full_path else path.relative_to(root)),
                "label": str(label_path(image_id, label.suffix)),
            }
            for image_id, entry in snapshot.images.items()
            if (label := entry.labels.get(FINAL)) is not None
            and (path := self._index.path_in(snapshot, image_id)) is not None
        ]

    def get_dataset_archive(self, limit_cases: int | None) -> str:  # noqa: ARG002 - base signature
        """Raise DatastoreError: the owner of the studies folder can copy the folder instead."""
        raise DatastoreError("an archive of all cases is not offered; copy the studies folder")


def _reserved(folder: Path, scans: Path) -> dict[str, str]:
    """Return the folders in the studies folder that are not searched, as `StudiesFolder` takes them."""
    if folder == scans:
        return {LABELS: ""}
    reserved = {LABELS: f"is not read; labels are in {folder / LABELS} (--conf state_dir)"}
    if folder.is_relative_to(scans):
        reserved[str(folder.relative_to(scans))] = ""
    return reserved


def _content(path: Path) -> str:
    """Return a digest of a file, or of the files in a folder regardless of their names."""
    if path.is_file():
        return digest_of(path)
    parts = sorted(digest_of(file) for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(parts).encode()).hexdigest()
