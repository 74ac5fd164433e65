"""Attributes that clients gave to images and labels, in the database; before, they were in MONAI Label's index.

`datastore_v2.json` is no longer written. A file of that name, of MONAI Label or of an earlier version of this
program, is read at the start: once, and again when it changed.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lib.labels.current_labels import CurrentVersions
from lib.storage.atomic_files import finite
from lib.storage.database import Database
from lib.storage.image_changes import record_changes
from lib.storage.tables import ImageInfo, LabelInfo, LabelVersion, Meta

logger = logging.getLogger(__name__)

INDEX_FILE = "datastore_v2.json"
STORED_AS = "stored_as"
"""Key of an image's information: path in the studies folder, if that differs from id and suffix."""
DERIVED = frozenset({"ts", "name", STORED_AS})
"""Keys that the server itself gives to every image and label."""
_READ = f"read:{INDEX_FILE}"
"""Key in `Meta` of the state of the index file that was read last."""


class Attributes:
    """The attributes in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_images(self, image_ids: Iterable[str] | None) -> dict[str, dict[str, Any]]:
        """Return image id -> attributes; of all images if `image_ids` is None."""
        with self._database.reading() as session:
            if image_ids is None:
                return {row.image_id: row.info for row in session.scalars(select(ImageInfo))}
            rows = (session.get(ImageInfo, image_id) for image_id in image_ids)
            return {row.image_id: row.info for row in rows if row is not None}

    def of_labels(self, versions: Iterable[int] | None) -> dict[int, dict[str, Any]]:
        """Return id of a label version -> attributes that were added later; of all if `versions` is None."""
        with self._database.reading() as session:
            if versions is None:
                return {
                    row.label_version_id: row.info for row in session.scalars(select(LabelInfo))
                }
            rows = (session.get(LabelInfo, version) for version in versions)
            return {row.label_version_id: row.info for row in rows if row is not None}

    def set_image(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Set the attributes of an image, in place of earlier ones."""
        with self._database.writing() as session:
            session.merge(ImageInfo(image_id=image_id, info=finite(dict(info))))
            record_changes(session, [image_id])

    def update_image(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Add attributes to an image."""
        with self._database.writing() as session:
            _add_to_image(session, image_id, info)
            record_changes(session, [image_id])

    def remove_image(self, image_id: str) -> None:
        """Remove the attributes of an image."""
        with self._database.writing() as session:
            row = session.get(ImageInfo, image_id)
            if row is not None:
                session.delete(row)
            record_changes(session, [image_id])

    def update_label(self, version: LabelVersion, info: Mapping[str, Any]) -> None:
        """Add attributes to a label version."""
        with self._database.writing() as session:
            _add_to_label(session, version.id, info)
            record_changes(session, [version.image_id])

    def read_index_file(self, folder: Path, versions: CurrentVersions) -> None:
        """Add the attributes in an index file, unless it was read before and did not change since.

        Args:
            folder: Folder of the file.
            versions: The current labels, to which the attributes of labels are added.
        """
        path = folder / INDEX_FILE
        try:
            status = path.stat()
            state = f"{status.st_mtime_ns} {status.st_size}"
            with self._database.reading() as session:
                read = session.get(Meta, _READ)
            if read is not None and read.value == state:
                return
            images = _entries(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            logger.error(
                "%s: not read (%s); the list is made from the files and labels", path, error
            )
            return
        changed = set()
        with self._database.writing() as session:
            for image_id, entry in images.items():
                info = _given(entry.get("image"), {})
                if info:
                    _add_to_image(session, image_id, info)
                    changed.add(image_id)
                for tag, version in versions.of_image(image_id).items():
                    info = _given(_mapping(entry.get("labels")).get(tag), version.info)
                    if info:
                        _add_to_label(session, version.id, info)
                        changed.add(image_id)
            record_changes(session, changed)
            session.merge(Meta(key=_READ, value=state))


def _add_to_image(session: Session, image_id: str, info: Mapping[str, Any]) -> None:
    row = session.get(ImageInfo, image_id)
    before = {} if row is None else row.info
    session.merge(ImageInfo(image_id=image_id, info=finite({**before, **info})))


def _add_to_label(session: Session, version_id: int, info: Mapping[str, Any]) -> None:
    row = session.get(LabelInfo, version_id)
    before = {} if row is None else row.info
    session.merge(LabelInfo(label_version_id=version_id, info=finite({**before, **info})))


def _entries(index: Any) -> dict[str, Mapping[str, Any]]:
    """Return image id -> entry of an index file, also of images that could not be read when it was written."""
    index = _mapping(index)
    both = {**_mapping(index.get("unavailable")), **_mapping(index.get("objects"))}
    return {str(image_id)[:200]: _mapping(entry) for image_id, entry in both.items()}


def _given(data: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes in an entry that clients gave and that are not known otherwise."""
    info = _mapping(_mapping(data).get("info"))
    return {
        key: value
        for key, value in info.items()
        if key not in DERIVED and not (key in known and known[key] == value)
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
