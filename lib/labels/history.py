"""History of all submitted labels: read-only volumes named by their content, and their provenance.

    labels/3f/3f2a....nii.gz           a volume, named by its SHA-256, read-only
    labels/history/IMAGE/final-2.json  the database's record of version 2 of IMAGE's final label

A volume is on disk before the row that names it, and the JSON file before the row is committed. Thus
each row has its volume, even if a process is killed at any moment, and a lost database can be filled again
from the files (`restore_from_files`).
"""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from lib.errors import DatastoreError, StateError
from lib.labels.current_labels import CurrentLabels, CurrentVersions
from lib.storage.atomic_files import digest_of, finite, replacing, write_json
from lib.storage.database import Database
from lib.storage.identifiers import require_image_id, require_tag
from lib.storage.image_changes import record_changes
from lib.storage.tables import LabelVersion, now

logger = logging.getLogger(__name__)

SUFFIX = ".nii.gz"
FINAL = "final"
"""Tag of the labels that people submit; trainings read these."""

CLIENT = "client"
CONSENSUS = "consensus"
FOLDER = "folder"
PACS = "pacs"
RESTORE = "restore"
"""Values of `LabelVersion.source`, which describes these five sources."""

DRAWN = (CLIENT, FOLDER, PACS)
"""Sources of labels that a person drew or accepted."""

_VOLUMES = "labels"
_RECORDS = "history"
_READ_ONLY = 0o444
_TICK = timedelta(microseconds=1)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PLAIN_COLUMNS = ("image_id", "tag", "number", "digest", "source", "author", "client",
                  "model_version", "organs", "doubts", "changes", "unchanged_from", "info")  # fmt: skip
_COLUMN_TYPES = {"number": int, "organs": list, "doubts": list, "changes": list, "info": dict,
                 "source": str, "author": str, "client": str}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Provenance and content of a label; the fields are columns of `LabelVersion`, which describes them."""

    source: str
    author: str = ""
    client: str = ""
    model_version: str | None = None
    organs: Sequence[str] = ()
    doubts: Sequence[str] = ()
    changes: Sequence[str] = ()
    unchanged_from: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    submitted_at: datetime | None = None
    """Time of submission, if not now; a version older than the current one does not replace it."""


class LabelHistory:
    """The versions of all labels; safe to use from several threads and processes.

    The current version of an image and tag is the newest by time that is not hidden.

    Args:
        database: The workflow database.
        folder: The database's folder (`lib.storage.database.state_folder`); files go into its `labels`.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder / _VOLUMES
        self._current = CurrentLabels(database)

    def path(self, digest: str) -> Path:
        """Return the path of the volume with that SHA-256; it is never changed and never removed."""
        return self.folder / digest[:2] / f"{digest}{SUFFIX}"

    def volume(self, version: LabelVersion) -> Path:
        """Return the path of a version's volume.

        Raises:
            StateError: If it is missing.
        """
        path = self.path(version.digest)
        if not path.is_file():
            raise StateError(
                f"{version.image_id}: the volume of version {version.number} is missing; restore a backup"
            )
        return path

    def keep_volume(self, file: Path) -> str:
        """Copy a `.nii.gz` file to the volumes, unless it is there already, and return its SHA-256."""
        digest = digest_of(file)
        target = self.path(digest)
        # The stored volume may have been damaged since: then it is replaced.
        if not target.is_file() or digest_of(target) != digest:
            with replacing(target, mode=_READ_ONLY) as temporary:
                shutil.copyfile(file, temporary)
                if digest_of(temporary) != digest:
                    raise StateError(
                        f"{file.name}: the file changed while it was copied; submit it again"
                    )
        return digest

    def add(self, image_id: str, tag: str, file: Path, provenance: Provenance) -> LabelVersion:
        """Add a label as the newest version of its image and tag; on disk when this returns.

        Raises:
            OSError: If the disk is full; then nothing was added.
        """
        return self._add(image_id, tag, self.keep_volume(file), provenance)

    def _add(self, image_id: str, tag: str, digest: str, provenance: Provenance) -> LabelVersion:
        record_file = None
        try:
            with self.database.writing() as session:
                versions = versions_of(session, image_id, tag)
                current = next((v for v in reversed(versions) if v.hidden_at is None), None)
                columns = {
                    **_as_json(asdict(provenance)),
                    "submitted_at": _time_of(provenance, versions),
                }
                version = LabelVersion(
                    image_id=image_id,
                    tag=tag,
                    number=self._free_number(image_id, tag, versions),
                    digest=digest,
                    parent_id=None if current is None else current.id,
                    **columns,
                )
                session.add(version)
                session.flush()
                record_changes(session, [image_id])
                record_file = self._record_file(image_id, tag, version.number)
                self._write_record(session, version)
        except BaseException:
            if record_file is not None:
                # The sender gets an error, so `restore_from_files` must not bring the version back.
                record_file.unlink(missing_ok=True)
            raise
        logger.info(
            "%s: version %d of label %r from %s", image_id, version.number, tag, version.source
        )
        return version

    def restore(self, image_id: str, tag: str, number: int, author: str) -> LabelVersion:
        """Add a version with the content of an older one, hidden or not, and return it.

        Raises:
            DatastoreError: If there is no such version.
            StateError: If its volume is missing or damaged.
        """
        old = self.version(image_id, tag, number)
        if digest_of(self.volume(old)) != old.digest:
            raise StateError(
                f"{image_id}: the volume of version {number} is damaged; restore a backup"
            )
        provenance = Provenance(
            source=RESTORE,
            author=author,
            model_version=old.model_version,
            organs=old.organs,
            doubts=old.doubts,
            changes=old.changes,
            unchanged_from=old.unchanged_from,
            info={**old.info, "restored_number": number},
        )
        return self._add(image_id, tag, old.digest, provenance)

    def hide(self, image_id: str, tag: str) -> int:
        """Hide every version of an image's label, and return their number; `restore` brings one back."""
        with self.database.writing() as session:
            visible = [v for v in versions_of(session, image_id, tag) if v.hidden_at is None]
            moment = now()
            for version in visible:
                version.hidden_at = moment
                self._write_record(session, version)
            record_changes(session, [image_id] if visible else [])
        return len(visible)

    def current(self, tag: str | None = FINAL) -> list[LabelVersion]:
        """Return the newest visible version of each image, sorted by image; of every tag if `tag` is None."""
        return self.current_versions().sorted(tag)

    def current_versions(self) -> CurrentVersions:
        """Return the newest visible version of each label; fast for thousands of images."""
        return self._current.now()

    def current_digests(self, tag: str = FINAL) -> Mapping[str, str]:
        """Return image id -> SHA-256 of its current label."""
        return self.current_versions().digests(tag)

    def newest(self, image_id: str, tag: str) -> LabelVersion | None:
        """Return the current version of an image's label; None if no version is visible."""
        visible = [v for v in self.history(image_id, tag) if v.hidden_at is None]
        return visible[-1] if visible else None

    def history(self, image_id: str, tag: str | None = None) -> list[LabelVersion]:
        """Return all versions of an image's label, including hidden ones, oldest first; of all tags if None."""
        with self.database.reading() as session:
            return versions_of(session, image_id, tag)

    def version(self, image_id: str, tag: str, number: int) -> LabelVersion:
        """Return one version of an image's label.

        Raises:
            DatastoreError: If there is no such version.
        """
        for version in self.history(image_id, tag):
            if version.number == number:
                return version
        raise DatastoreError(f"{image_id}: label {tag!r} has no version {number}")

    def missing_organs(self, version: LabelVersion) -> tuple[str, ...]:
        """Return the organs that the replaced version has and `version` lacks."""
        earlier = self.history(version.image_id, version.tag)
        organs = next((v.organs for v in earlier if v.id == version.parent_id), [])
        return tuple(organ for organ in organs if organ not in version.organs)

    def mark_in_place(self, version: LabelVersion) -> None:
        """Record that the working copy, in `labels/<tag>/` of the studies folder, holds this version."""
        with self.database.writing() as session:
            session.execute(
                update(LabelVersion).where(LabelVersion.id == version.id).values(is_in_place=True)
            )
            record_changes(session, [version.image_id])

    def records(self) -> list[dict[str, Any]]:
        """Return the record of every version, as JSON values; `merge` reads them."""
        with self.database.reading() as session:
            versions = list(session.scalars(_in_order(select(LabelVersion))))
            numbers = {v.id: v.number for v in versions}
        return [_as_record(v, numbers.get(v.parent_id or 0)) for v in versions]

    def restore_from_files(self) -> int:
        """Add the versions that are on disk and not in the database; return their number.

        There are such versions after a damaged database was set aside, and after a kill before the commit.
        """
        columns = select(LabelVersion.image_id, LabelVersion.tag, LabelVersion.number)
        with self.database.reading() as session:
            in_database = {self._record_file(*row) for row in session.execute(columns)}
        files = sorted((self.folder / _RECORDS).glob("*/[!.]*.json"))
        records = (_read_record(path) for path in files if path not in in_database)
        added = self.merge(record for record in records if record is not None)
        if added:
            logger.warning("%d label versions were added to the database from their files", added)
        return added

    def merge(self, records: Iterable[Mapping[str, Any]]) -> int:
        """Add the versions that are not in the database yet, and return their number.

        Two versions are the same if image, tag, time and content are equal. A version whose number is taken
        gets the next free one. Existing versions do not change; if the label was hidden after an added
        version was submitted, that version is hidden too. A record whose volume is missing is skipped.
        """
        ids: dict[tuple[str, str, int], int] = {}
        added = 0
        with self.database.writing() as session:
            for record in sorted(records, key=lambda r: (r["submitted_at"], r["number"])):
                key = (record["image_id"], record["tag"])
                existing = versions_of(session, *key)
                version = next((v for v in existing if _is_same(v, record)), None)
                if version is None:
                    if not self.path(record["digest"]).is_file():
                        logger.error("%s: version %d has no volume", key[0], record["number"])
                        continue
                    version = self._new_version(record, existing, ids)
                    session.add(version)
                    session.flush()
                    self._write_record(session, version)
                    record_changes(session, [version.image_id])
                    added += 1
                ids[key[0], key[1], record["number"]] = version.id
        return added

    def _new_version(
        self, record: Mapping[str, Any], existing: list[LabelVersion], ids: Mapping[Any, int]
    ) -> LabelVersion:
        """Return a row for a record of `merge`.

        Args:
            record: As `checked_record` returns it.
            existing: The rows of the same label.
            ids: (image id, tag, number) of each earlier record -> id of its row.
        """
        hidden = record["hidden_at"]
        row = LabelVersion(
            **{key: record[key] for key in _PLAIN_COLUMNS},
            submitted_at=datetime.fromisoformat(record["submitted_at"]),
            hidden_at=None if hidden is None else datetime.fromisoformat(hidden),
        )
        if any(v.number == row.number for v in existing):
            row.number = self._free_number(row.image_id, row.tag, existing)
        if record["parent"] is not None:
            by_number = {v.number: v.id for v in existing}
            parent = ids.get((row.image_id, row.tag, record["parent"]))
            row.parent_id = parent or by_number.get(record["parent"])
        later = [v.hidden_at for v in existing if v.hidden_at and v.hidden_at >= row.submitted_at]
        if later and row.hidden_at is None:
            row.hidden_at = max(later)
        return row

    def _free_number(self, image_id: str, tag: str, versions: Iterable[LabelVersion]) -> int:
        """Return the number after those of all rows and files."""
        folder = self.folder / _RECORDS / image_id
        stems = (path.stem.rpartition("-") for path in folder.glob("*.json"))
        on_disk = [int(number) for name, _, number in stems if name == tag and number.isdecimal()]
        return 1 + max([v.number for v in versions] + on_disk, default=0)

    def _record_file(self, image_id: str, tag: str, number: int) -> Path:
        return self.folder / _RECORDS / image_id / f"{tag}-{number}.json"

    def _write_record(self, session: Session, version: LabelVersion) -> None:
        parent = session.get(LabelVersion, version.parent_id) if version.parent_id else None
        path = self._record_file(version.image_id, version.tag, version.number)
        write_json(path, _as_record(version, None if parent is None else parent.number))


def _in_order(query: Select[LabelVersion]) -> Select[LabelVersion]:
    return query.order_by(LabelVersion.submitted_at, LabelVersion.number)


def versions_of(session: Session, image_id: str, tag: str | None) -> list[LabelVersion]:
    """Return all versions of one label, or of all tags, including hidden ones, oldest first."""
    query = select(LabelVersion).where(LabelVersion.image_id == image_id)
    if tag is not None:
        query = query.where(LabelVersion.tag == tag)
    return list(session.scalars(_in_order(query)))


def _time_of(provenance: Provenance, versions: Sequence[LabelVersion]) -> datetime:
    """Return the time of submission: not in the future, and different from those of `versions`."""
    moment = now()
    if provenance.submitted_at is None:
        # After the newest version, even if the clock was set back.
        return max(moment, versions[-1].submitted_at + _TICK) if versions else moment
    taken = {version.submitted_at for version in versions}
    moment = min(provenance.submitted_at, moment)
    while moment in taken:
        moment += _TICK
    return moment


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` as JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(finite(values), default=str))
    return plain


def _is_same(version: LabelVersion, record: Mapping[str, Any]) -> bool:
    moment = datetime.fromisoformat(record["submitted_at"])
    return version.digest == record["digest"] and version.submitted_at == moment


def _as_record(version: LabelVersion, parent: int | None) -> dict[str, Any]:
    """Return a row as JSON values; `parent` is the number of the version that it replaced."""
    return {
        **{key: getattr(version, key) for key in _PLAIN_COLUMNS},
        "parent": parent,
        "submitted_at": version.submitted_at.isoformat(),
        "hidden_at": None if version.hidden_at is None else version.hidden_at.isoformat(),
    }


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return the record in a file; None, with an error in the log, if it is invalid."""
    try:
        return checked_record(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, DatastoreError) as error:
        logger.error("%s/%s cannot be read (%s): skipped", path.parent.name, path.name, error)
        return None


def checked_record(record: Any) -> dict[str, Any]:
    """Return `record` if it is valid; this is checked because its image id, tag and digest become paths.

    Raises:
        ValueError, KeyError, TypeError, DatastoreError: If it is invalid.
    """
    # Records of earlier versions of this program have neither.
    record = {"changes": [], "unchanged_from": None, **record}
    require_image_id(record["image_id"])
    require_tag(record["tag"])
    if not _DIGEST.fullmatch(record["digest"]):
        raise ValueError(f"{record['digest'][:70]!r} is not a SHA-256")
    for key, kind in _COLUMN_TYPES.items():
        if not isinstance(record[key], kind):
            raise TypeError(f"{key} is {type(record[key]).__name__}; {kind.__name__} expected")
    for key in ("submitted_at", "hidden_at"):
        moment = record[key]
        is_visible = moment is None and key == "hidden_at"
        if not is_visible and datetime.fromisoformat(moment).tzinfo is None:
            raise ValueError(f"{key} has no time zone")
    if not isinstance(record["unchanged_from"], str | None):
        raise TypeError("unchanged_from is not the version of a model")
    if not isinstance(record["parent"], int | None):
        raise TypeError("parent is not a number")
    return {key: record[key] for key in (*_PLAIN_COLUMNS, "parent", "submitted_at", "hidden_at")}
