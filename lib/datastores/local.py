"""The studies folder: scans, DICOM folders, and the labels drawn on them."""

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore

from lib.archives import unpack
from lib.dicom.series import holds_dicom
from lib.errors import DatastoreError
from lib.files import replacing
from lib.names import require_image_id, require_tag
from lib.scans import SCAN_SUFFIXES, read_ct, read_label, write_label
from lib.transforms.labels import to_our_values
from lib.volumes import LabelVolume

logger = logging.getLogger(__name__)

LABEL_SUFFIX = ".nii.gz"
INDEX = "datastore_v2.json"


class FolderStore(LocalDatastore):
    """A studies folder in MONAI Label's layout, in which a folder that holds DICOM files is an image too.

    What comes in is read before it is kept: an image must be one regular CT, a label must lie on its image's
    grid and hold organs. Labels are stored with the values of `labels`, as compressed NIfTI.
    """

    def __init__(self, folder: Path, *, labels: Mapping[str, int], auto_reload: bool) -> None:
        self._labels = labels
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        _set_aside_damaged_index(folder / INDEX)
        super().__init__(
            str(folder),
            extensions=[f"*{suffix}" for suffix in SCAN_SUFFIXES],
            auto_reload=auto_reload,
        )

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = super()._list_files(path, patterns)
        found = {name: file for name, file in found.items() if not name.startswith(".")}
        if Path(path).resolve() == Path(self._datastore.image_path()).resolve():
            for entry in Path(path).iterdir():
                is_hidden = entry.name.startswith(".") or entry.name == "labels"
                if entry.is_dir() and not is_hidden and holds_dicom(entry):
                    found[entry.name] = entry.name
        return found

    def _to_id(self, file: str) -> tuple[str, str]:
        # MONAI Label's own removes the suffix wherever it stands in the name, and cuts folder names at a dot.
        for suffix in SCAN_SUFFIXES:
            if file.endswith(suffix):
                return file.removesuffix(suffix), suffix
        return file, ""

    def _update_datastore_file(self, lock: bool = True) -> None:  # noqa: FBT001, FBT002
        # Defect 3: written in place, the index was found empty after a kill.
        if lock:
            with FileLock(self._lock_file):
                self._update_datastore_file(lock=False)
            return
        self._ignore_event_config = True
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        path = Path(self._datastore_config_path)
        with replacing(path) as beside:
            beside.write_text(text, encoding="utf-8")
        self._config_ts = path.stat().st_mtime

    def require_image(self, image_id: str) -> Path:
        """Return where the image lies.

        Raises:
            DatastoreError: If there is no such image.
        """
        # Defect 11: only an id that the store lists is ever turned into a path.
        if image_id not in self._datastore.objects:
            self.refresh()
        uri = self.get_image_uri(image_id)
        if not uri:
            raise DatastoreError(
                f"{image_id[:80]!r}: no such image; GET /datastore/?output=all lists them"
            )
        return Path(uri)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Keep a scan file, or a zip of one DICOM series, and return its id.

        Raises:
            DatastoreError: If the id is not allowed, or another scan has it already.
            ScanError: If it is not one regular CT. Nothing is kept then.
        """
        source = Path(image_filename)
        with tempfile.TemporaryDirectory(prefix=".receiving-", dir=self._folder) as received:
            if source.suffix == ".zip":
                image_id = require_image_id(image_id or source.stem)
                scan, suffix = unpack(source, Path(received) / "series", image_id), ""
            else:
                stem, suffix = self._to_id(source.name)
                image_id, scan = require_image_id(image_id or stem), source
            read_ct(scan, image_id=image_id)
            self._keep_image(image_id, scan, suffix)
        with FileLock(self._lock_file):
            info = {**(image_info or {}), "ts": int(time.time()), "name": image_id + suffix}
            self._datastore.objects.setdefault(
                image_id, ImageLabelModel(image=DataModel(info=info, ext=suffix))
            )
            self._update_datastore_file(lock=False)
        return image_id

    def _keep_image(self, image_id: str, scan: Path, suffix: str) -> None:
        known = self.get_image_uri(image_id)
        if known:
            if _content(Path(known)) != _content(scan):
                raise DatastoreError(
                    f"{image_id}: another scan has this id already; choose another id, or remove the old one"
                )
            return
        target = Path(self._datastore.image_path()) / f"{image_id}{suffix}"
        if scan.is_dir():
            scan.rename(target)
        else:
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
        image = read_ct(self.require_image(image_id), image_id=image_id)
        tag = require_tag(label_tag)
        array, _ = read_label(Path(label_filename), image_id=image_id, image_grid=image.grid)
        entries = (label_info or {}).get("label_info") or []
        ours = to_our_values(array, entries, self._labels, image_id)
        name = image_id + LABEL_SUFFIX
        target = Path(self._datastore.label_path(tag)) / name
        # Defects 4 and 11: written beside and renamed, under a name that was checked.
        write_label(target, LabelVolume(ours, image.grid, self._labels))
        with FileLock(self._lock_file):
            info = {**(label_info or {}), "ts": int(time.time()), "name": name}
            image_entry = self._datastore.objects[image_id]
            image_entry.labels[tag] = DataModel(info=info, ext=LABEL_SUFFIX)
            self._update_datastore_file(lock=False)
        return image_id

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:  # noqa: FBT001, FBT002
        """Return image and final label of every labelled case, as MONAI Label's training wants them."""
        pairs: list[dict[str, Any]] = super().datalist(full_path)
        return pairs


def _set_aside_damaged_index(path: Path) -> None:
    """Move an index that cannot be read out of the way: it is made again from the files (defect 3)."""
    try:
        if not isinstance(json.loads(path.read_text(encoding="utf-8")).get("objects"), dict):
            raise ValueError("it lists no objects")
    except FileNotFoundError:
        return
    except (ValueError, AttributeError, OSError) as error:
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
        path.rename(aside)
        logger.warning("%s cannot be read (%s): kept as %s and made anew", path, error, aside.name)


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
