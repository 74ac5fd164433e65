"""The studies folder: scans, DICOM folders, and the labels drawn on them."""

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.local import (
    DataModel,
    ImageLabelModel,
    LocalDatastore,
    LocalDatastoreModel,
)

from lib.archives import unpack
from lib.datastores.index import LABELS, Index, suffix_of
from lib.errors import DatastoreError, ImageExistsError, ScanError
from lib.files import replacing
from lib.names import require_image_id, require_tag
from lib.scans import read_ct, read_label, write_label
from lib.transforms.labels import to_our_values
from lib.volume_files import SCAN_SUFFIXES
from lib.volumes import LabelVolume

logger = logging.getLogger(__name__)

FINAL = "final"
LABEL_SUFFIX = ".nii.gz"
REMOVED = ".removed"
"""Folder of what was removed: nothing that a client asks for destroys a scan or a contour."""


class FolderStore(LocalDatastore):
    """A studies folder in MONAI Label's layout, in which the folder of a DICOM series is an image too.

    What comes in is read before it is kept: an image must be one regular CT, a label must lie on its image's
    grid and hold organs. Labels are stored with the values of `labels`, as compressed NIfTI.
    """

    def __init__(self, folder: Path, *, labels: Mapping[str, int]) -> None:
        # MONAI Label's own __init__ is not called: it starts a thread and writes in place (see Index).
        self._labels = labels
        self._folder = folder
        self._datastore_path = str(folder)
        for tag in (FINAL, "original"):
            (folder / LABELS / tag).mkdir(parents=True, exist_ok=True)
        self._index = Index(folder)
        self.refresh()

    @property
    def _datastore(self) -> LocalDatastoreModel:
        """What MONAI Label's own methods, which only read here, look things up in."""
        return self._index.snapshot()

    def set_name(self, name: str) -> None:
        """Name the store."""
        with self._index.changing() as index:
            index.name = name

    def set_description(self, description: str) -> None:
        """Describe the store."""
        with self._index.changing() as index:
            index.description = description

    def refresh(self) -> None:
        """Look at the folder again; every other method does so itself."""
        self._index.snapshot()

    def require_image(self, image_id: str) -> Path:
        """Return where the image lies.

        Raises:
            DatastoreError: If there is no such image.
        """
        # Defect 11: only an id that the store lists is ever turned into a path.
        known = self._datastore.objects.get(require_image_id(image_id))
        if known is None:
            raise DatastoreError(
                f"{image_id}: no such image; GET /datastore/?output=all lists them"
            )
        return self._folder / f"{image_id}{known.image.ext}"

    def require_label(self, image_id: str, tag: str) -> Path:
        """Return where a label of an image lies.

        Raises:
            DatastoreError: If there is no such image or label.
        """
        self.require_image(image_id)
        known = self._datastore.label(image_id, require_tag(tag))
        if known is None:
            raise DatastoreError(f"{image_id}: there is no label with the tag {tag!r}")
        return self._label_path(image_id, tag, known.ext)

    def _label_path(self, image_id: str, tag: str, suffix: str) -> Path:
        return self._folder / LABELS / tag / (image_id + suffix)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of an image; `path` only where it is one file, which Slicer may load."""
        info: dict[str, Any] = super().get_image_info(image_id)
        if info and not Path(info["path"]).is_file():
            del info["path"]
        return info

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Keep a scan file, or a zip of one DICOM series, and return its id.

        Raises:
            DatastoreError: If the id is not allowed.
            ImageExistsError: If another scan has the id already.
            ScanError: If it is not one regular CT. Nothing is kept then.
        """
        source = Path(image_filename)
        suffix = suffix_of(source.name)
        if suffix is None and source.suffix != ".zip":
            raise ScanError(
                f"{source.name}: expected one of {', '.join(SCAN_SUFFIXES)}, or a .zip of one DICOM series"
            )
        image_id = require_image_id(image_id or source.name.removesuffix(suffix or ".zip"))
        with tempfile.TemporaryDirectory(prefix=".receiving-", dir=self._folder) as received:
            scan = source if suffix else unpack(source, Path(received) / "series", image_id)
            read_ct(scan, image_id=image_id)
            with self._index.changing() as index:
                if image_id not in index.objects:
                    self._keep(scan, self._folder / (image_id + (suffix or "")))
                    name = image_id + (suffix or LABEL_SUFFIX)
                    info = {**(image_info or {}), "ts": int(time.time()), "name": name}
                    index.objects[image_id] = ImageLabelModel(
                        image=DataModel(info=info, ext=suffix or "")
                    )
                elif _content(scan) != _content(
                    self._folder / (image_id + index.objects[image_id].image.ext)
                ):
                    raise ImageExistsError(
                        f"{image_id}: another scan has this id already; choose another id, or remove the "
                        "old one"
                    )
        return image_id

    def _keep(self, scan: Path, target: Path) -> None:
        if scan.is_dir():
            scan.rename(target)
            return
        with replacing(target) as beside:
            shutil.copyfile(scan, beside)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Keep a label of an image, and return its id, which is the image's.

        Raises:
            DatastoreError: If there is no such image, or the tag is not allowed.
            LabelError: If the file is no label, or names organs that this server does not contour.
            GeometryError: If it does not lie on the image's grid. The label before stays in each case.
        """
        tag = require_tag(label_tag)
        image = read_ct(self.require_image(image_id), image_id=image_id)
        array, _ = read_label(Path(label_filename), image_id=image_id, image_grid=image.grid)
        entries = (label_info or {}).get("label_info") or []
        ours = to_our_values(array, entries, self._labels, image_id)
        target = self._label_path(image_id, tag, LABEL_SUFFIX)
        with self._index.changing() as index:
            # Defects 4 and 11: written beside and renamed, under a name that was checked.
            entry = _entry(index, image_id)
            write_label(target, LabelVolume(ours, image.grid, self._labels))
            info = {**(label_info or {}), "ts": int(time.time()), "name": target.name}
            entry.labels[tag] = DataModel(info=info, ext=LABEL_SUFFIX)
        logger.info("%s: label %r saved", image_id, tag)
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Put an image and its labels out of the store, into `REMOVED`.

        Raises:
            DatastoreError: If there is no such image.
        """
        image = self.require_image(image_id)
        for tag in self.get_labels_by_image_id(image_id):
            self.remove_label(image_id, tag)
        with self._index.changing() as index:
            self._set_aside(image)
            index.objects.pop(image_id, None)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Put one label of an image out of the store, into `REMOVED`.

        Raises:
            DatastoreError: If there is no such label.
        """
        label = self.require_label(label_id, label_tag)
        with self._index.changing() as index:
            self._set_aside(label)
            _entry(index, label_id).labels.pop(label_tag, None)

    def _set_aside(self, path: Path) -> None:
        target = self._folder / REMOVED / str(time.time_ns()) / path.relative_to(self._folder)
        target.parent.mkdir(parents=True)
        path.rename(target)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Remember something of an image.

        Raises:
            DatastoreError: If there is no such image.
        """
        self.require_image(image_id)
        with self._index.changing() as index:
            _entry(index, image_id).image.info.update(info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Remember something of a label.

        Raises:
            DatastoreError: If there is no such label.
        """
        self.require_label(label_id, label_tag)
        with self._index.changing() as index:
            label = _entry(index, label_id).labels.get(label_tag)
            if label is not None:
                label.info.update(info)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:  # noqa: FBT001, FBT002 - the base's
        """Return id, image and final label of every labelled case, with paths, sorted by id."""
        index = self._datastore
        root = self._folder if full_path else Path()
        return [
            {
                "id": image_id,
                "image": str(root / (image_id + entry.image.ext)),
                "label": str(root / LABELS / FINAL / (image_id + entry.labels[FINAL].ext)),
            }
            for image_id, entry in sorted(index.objects.items())
            if FINAL in entry.labels
        ]

    def get_dataset_archive(self, limit_cases: int | None) -> str:  # noqa: ARG002 - the base's
        """Refuse: the studies folder is where its owner can copy it.

        Raises:
            DatastoreError: Always.
        """
        raise DatastoreError("an archive of all cases is not offered; copy the studies folder")


def _entry(index: LocalDatastoreModel, image_id: str) -> ImageLabelModel:
    entry = index.objects.get(image_id)
    if entry is None:
        raise DatastoreError(f"{image_id}: the image was removed a moment ago")
    return entry


def _content(path: Path) -> str:
    """Return a digest of a file, or of a folder's files whatever their names."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = (file for file in path.rglob("*") if file.is_file())
    parts = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(parts).encode()).hexdigest()
