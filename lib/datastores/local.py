"""The studies folder: scans, DICOM folders, and the labels drawn on them."""

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from monailabel.datastore.local import (
    DataModel,
    ImageLabelModel,
    LocalDatastore,
    LocalDatastoreModel,
)

from lib.errors import (
    DatastoreError,
    ImageExistsError,
    LabelError,
    PacsError,
    ScanError,
    StorageFullError,
)
from lib.imaging.formats import SCAN_SUFFIXES, unpack_zip
from lib.imaging.scans import read_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.labels.folder_watcher import FolderWatcher, RefusedFile
from lib.labels.history import CONSENSUS, FINAL, LabelHistory, Submission
from lib.labels.history import SUFFIX as LABEL_SUFFIX
from lib.labels.monailabel_index import LABELS, ImageCatalog, Index, entry_of, suffix_of
from lib.labels.quarantine import Quarantine
from lib.labels.validation import CheckedLabel, check_label
from lib.labels.working_copy import WorkingCopy
from lib.storage.atomic_files import UNFINISHED, is_disk_full, replacing
from lib.storage.identifiers import require_image_id, require_tag
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

REMOVED = ".removed"
"""Folder of what was removed: nothing that a client asks for destroys a scan or a contour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDependencies:
    """What a store works with, wherever its images are.

    Attributes:
        labels: TG-263 name -> value.
        history: The versions of the labels.
        quarantine: Where refused labels are kept.
        served: Returns the version of the model that serves.
    """

    labels: Mapping[str, int]
    history: LabelHistory
    quarantine: Quarantine
    served: Callable[[], str | None] = lambda: None


class FolderStore(LocalDatastore):
    """A studies folder in MONAI Label's layout, in which the folder of a DICOM series is an image too.

    What comes in is read before it is kept: an image must be one regular CT, a label must lie on its image's
    grid and hold organs. Labels are stored with the values of `labels`, as compressed NIfTI.

    Each label is a version that stays for ever (`lib.labels.history`), `labels/<tag>/` holds a copy of the
    current one, and what people change there by hand becomes a version too (`scan_folder`).

    Args:
        folder: The studies folder.
        parts: What it works with.
        catalog: Images that are listed elsewhere; None where they are what lies in `folder`.
    """

    def __init__(
        self,
        folder: Path,
        parts: "StoreDependencies",
        *,
        catalog: ImageCatalog | None = None,
    ) -> None:
        # MONAI Label's own __init__ is not called: it starts a thread and writes in place (see Index).
        self._labels = parts.labels
        self._folder = folder
        self._datastore_path = str(folder)
        self.history = parts.history
        """The versions of the labels."""
        self._served = parts.served
        self.quarantine = parts.quarantine
        for tag in (FINAL, "original"):
            (folder / LABELS / tag).mkdir(parents=True, exist_ok=True)
        self._index = Index(folder, known=self._known, catalog=catalog)
        watcher = FolderWatcher(
            folder,
            self.history,
            self._index,
            labels=self._labels,
            set_aside=self._set_aside,
            scan=self.require_image,
        )
        self._versions = WorkingCopy(
            folder, self.history, self._index, watcher=watcher, set_aside=self._set_aside
        )
        self.refresh()

    def _known(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {(v.image_id, v.tag): v.info for v in self.history.current(None)}

    @property
    def folder(self) -> Path:
        """Where labels lie, and scans, unless somebody else has them."""
        return self._folder

    @property
    def _datastore(self) -> LocalDatastoreModel:
        """What MONAI Label's own methods, which only read here, look things up in."""
        return self._index.snapshot()

    @property
    def labels(self) -> Mapping[str, int]:
        """TG-263 name -> value, as labels are stored."""
        return self._labels

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
        """Return where the image lies, ready to be read.

        Raises:
            DatastoreError: If there is no such image.
        """
        return self.image_location(image_id)

    def is_available(self, image_id: str) -> bool:  # noqa: ARG002 - a PACS's store looks
        """Return whether an image of the store can be read without waiting for somebody else."""
        return True

    def refused_images(self) -> Mapping[str, str]:
        """Return image id -> why it cannot be contoured, of what is known to be no scan for us."""
        return {}

    def image_location(self, image_id: str) -> Path:
        """Return where the image lies, or will once it was fetched.

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
        self.image_location(image_id)
        known = self._datastore.label(image_id, require_tag(tag))
        if known is None:
            raise DatastoreError(f"{image_id}: there is no label with the tag {tag!r}")
        path = self._label_path(image_id, tag, known.ext)
        return self._versions.readable(path, image_id, tag)

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
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self._folder) as received:
            scan = source if suffix else unpack_zip(source, Path(received) / "series", image_id)
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
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        *,
        source: str = "client",
    ) -> str:
        """Keep a label as `submit_label` does, and return its id, which is the image's."""
        return self.submit_label(
            image_id, Path(label_filename), label_tag, label_info, source=source
        ).image_id

    def submit_label(
        self,
        image_id: str,
        file: Path,
        label_tag: str,
        label_info: Mapping[str, Any],
        *,
        source: str = "client",
        submitted_at: datetime | None = None,
    ) -> LabelVersion:
        """Keep a label of an image as a version, and return that; it is on disk then.

        Args:
            image_id: The image that it was drawn on.
            file: Not changed.
            label_tag: `final`, `original` or another.
            label_info: What the client sent; `label_info` names the values, `author`, `client_id` and
                `model_version` go into the history.
            source: As in `LabelVersion`.
            submitted_at: When, if not now.

        Raises:
            DatastoreError: If there is no such image, or the tag is not allowed.
            LabelError: If the file is no label, or names organs that this server does not contour.
            GeometryError: If it does not lie on the image's grid. The label before stays in each case, and
                the refused one is kept in quarantine.
            StorageFullError: If the disk is full; the label before stays.
        """
        tag = require_tag(label_tag)
        require_image_id(image_id)
        info = dict(label_info or {})
        try:
            image = self.require_image(image_id)
            entries = info.get("label_info") or []
            checked = check_label(
                file, image=image, image_id=image_id, label_info=entries, labels=self._labels
            )
        except (LabelError, ScanError, DatastoreError, PacsError) as error:
            about = {"image": image_id, "tag": tag, "user": info.get("author", "")}
            raise type(error)(self.refuse(file, about, str(error))) from error
        submission = self._submission(info, source, checked, submitted_at)
        with _saying_so_where_full(image_id):
            return self._versions.save(image_id, tag, checked, submission)

    def refuse(self, file: Path, about: Mapping[str, Any], reason: str) -> str:
        """Put a refused label into quarantine, and return the reason with where it is kept."""
        suffix = suffix_of(file.name) or file.suffix
        return f"{reason}; {self.quarantine.keep(file, {**about, 'reason': reason}, suffix=suffix)}"

    def _submission(
        self,
        info: dict[str, Any],
        source: str,
        checked: CheckedLabel,
        submitted_at: datetime | None = None,
    ) -> Submission:
        return Submission(
            source=source,
            author=str(info.pop("author", "")),
            client=str(info.get("client_id") or "")[:200],
            model_version=str(info.get("model_version") or self._served() or "")[:120] or None,
            organs=checked.organs,
            doubts=checked.doubts,
            info=info,
            submitted_at=submitted_at,
        )

    def restore_label(self, image_id: str, tag: str, number: int, author: str) -> LabelVersion:
        """Make an older version the current one again, as a new version, and return that.

        Raises:
            DatastoreError: If there is no such image, or no such version.
            StateError: If its volume is gone or damaged.
        """
        self.image_location(image_id)
        return self._versions.restore(image_id, require_tag(tag), number, author)

    def submit_consensus(
        self, image_id: str, label: LabelVolume, about: Mapping[str, Any]
    ) -> LabelVersion:
        """Keep what several readings agree on as the current final label, and return the version.

        Args:
            image_id: The image.
            label: With the values of this store, on the image's grid.
            about: How it was made; `consensus` in the version's `info`.

        Raises:
            DatastoreError: If there is no such image.
            GeometryError: If it does not lie on the image's grid.
        """
        image = self.require_image(image_id)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self._folder) as folder:
            file = Path(folder) / f"label{LABEL_SUFFIX}"
            write_label(file, label)
            checked = check_label(
                file, image=image, image_id=image_id, label_info=(), labels=self._labels
            )
        submission = self._submission({CONSENSUS: dict(about)}, CONSENSUS, checked)
        return self._versions.save(image_id, FINAL, checked, submission)

    def scan_folder(self) -> list[LabelVersion]:
        """Make history and folder agree, and return the versions that were made of files laid into it.

        It reads files, so it runs beside the requests, every few seconds; where nothing changed it looks at
        names and times only.
        """
        return self._versions.watcher.run()

    def refused_files(self) -> list[RefusedFile]:
        """Return the files in `labels/` that are no labels, with the reason."""
        return self._versions.watcher.refused()

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
        """Put one label of an image out of the store, into `REMOVED`; its versions are hidden.

        Raises:
            DatastoreError: If there is no such label.
        """
        self.require_label(label_id, label_tag)
        with self._index.changing() as index:
            # The file first: a kill in between is the same as a file that was removed by hand.
            known = entry_of(index, label_id).labels.pop(label_tag, None)
            if known is not None:
                self._set_aside(self._label_path(label_id, label_tag, known.ext))
            self.history.hide(label_id, label_tag)

    def _set_aside(self, path: Path) -> None:
        target = self._folder / REMOVED / str(time.time_ns()) / path.relative_to(self._folder)
        target.parent.mkdir(parents=True)
        path.rename(target)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Remember something of an image.

        Raises:
            DatastoreError: If there is no such image.
        """
        self.image_location(image_id)
        with self._index.changing() as index:
            entry_of(index, image_id).image.info.update(info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Remember something of a label.

        Raises:
            DatastoreError: If there is no such label.
        """
        self.require_label(label_id, label_tag)
        with self._index.changing() as index:
            label = entry_of(index, label_id).labels.get(label_tag)
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
                "label": str(self._listed(image_id, entry.labels[FINAL].ext, full_path)),
            }
            for image_id, entry in sorted(index.objects.items())
            if FINAL in entry.labels
        ]

    def _listed(self, image_id: str, suffix: str, full_path: bool) -> Path:  # noqa: FBT001 - as above
        path = self._versions.readable(self._label_path(image_id, FINAL, suffix), image_id, FINAL)
        return path if full_path else path.relative_to(self._folder)

    def get_dataset_archive(self, limit_cases: int | None) -> str:  # noqa: ARG002 - the base's
        """Refuse: the studies folder is where its owner can copy it.

        Raises:
            DatastoreError: Always.
        """
        raise DatastoreError("an archive of all cases is not offered; copy the studies folder")


@contextmanager
def _saying_so_where_full(image_id: str) -> Iterator[None]:
    """Turn a full disk into a sentence for whoever submits.

    Raises:
        StorageFullError: If it is.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise StorageFullError(
            f"{image_id}: the disk is full, so the label was not kept; every label before it is. "
            "Keep it in your program, and submit it again when there is space"
        ) from error


def _content(path: Path) -> str:
    """Return a digest of a file, or of a folder's files whatever their names."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = (file for file in path.rglob("*") if file.is_file())
    parts = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(parts).encode()).hexdigest()
