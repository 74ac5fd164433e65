"""Every label that was ever submitted: files that never change, named by their content, and who made them.

    labels/3f/3f2a....nii.gz           a volume, named by its SHA-256, read-only
    labels/history/IMAGE/final-2.json  what the database knows of version 2 of IMAGE's final label

A volume is on disk before the row that names it, and the JSON file before the row is committed. So whatever
moment a process is killed at, each row has its volume; and a database that is lost is filled again from
the files (`restore_from_files`).
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from lib.errors import DatastoreError, StateError
from lib.labels.manifests import as_record, read_record, version_of
from lib.storage.atomic_files import digest_of, finite, replacing, write_json
from lib.storage.database import Database
from lib.storage.tables import LabelVersion, now

logger = logging.getLogger(__name__)

FOLDER = "labels"
HISTORY = "history"
SUFFIX = ".nii.gz"
READ_ONLY = 0o444
FINAL = "final"
"""Tag of the labels that people submit; trainings read these."""
CONSENSUS = "consensus"
"""`LabelVersion.source` of a label made from the readings of several people."""
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Where a label comes from; the columns of `LabelVersion` that somebody has to say.

    Attributes:
        source: As in `LabelVersion`.
        author: Who submitted it; empty where nobody logs in.
        client: The program's `client_id`.
        model_version: The model that served, or that the client named.
        organs: TG-263 names with at least one voxel.
        doubts: What looks wrong about it, in sentences.
        info: What the client sent with it.
        submitted_at: When, if not now; what is older than the current version does not take its place.
    """

    source: str
    author: str = ""
    client: str = ""
    model_version: str | None = None
    organs: Sequence[str] = ()
    doubts: Sequence[str] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    submitted_at: datetime | None = None


class LabelHistory:
    """The versions of all labels; safe to use from threads and processes at once.

    Of the versions of one image and tag that are not hidden, the newest by time is the current one.

    Args:
        database: Where the rows are.
        folder: The workflow's folder (`lib.storage.database.state_folder`); files go into its `labels`.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self.folder = folder / FOLDER

    def path(self, digest: str) -> Path:
        """Return where the volume with that SHA-256 lies; it is never changed and never removed."""
        return self.folder / digest[:2] / f"{digest}{SUFFIX}"

    def keep_volume(self, file: Path) -> str:
        """Copy a `.nii.gz` file among the volumes, where it is not there yet, and return its SHA-256."""
        digest = digest_of(file)
        target = self.path(digest)
        # A volume that lies there may have been damaged since: then it is good again after this.
        if not target.is_file() or digest_of(target) != digest:
            with replacing(target, mode=READ_ONLY) as beside:
                shutil.copyfile(file, beside)
                if digest_of(beside) != digest:
                    raise StateError(f"{file.name}: changed while it was copied; send it again")
        return digest

    def add(self, image_id: str, tag: str, file: Path, submission: Submission) -> LabelVersion:
        """Keep a label as the newest version of its image and tag; on disk when this returns.

        Raises:
            OSError: If the disk is full; then nothing was added.
        """
        return self._add(image_id, tag, self.keep_volume(file), submission)

    def _add(self, image_id: str, tag: str, digest: str, submission: Submission) -> LabelVersion:
        manifest = None
        try:
            with self._database.writing() as session:
                versions = _ordered(session, image_id, tag)
                current = next((v for v in reversed(versions) if v.hidden_at is None), None)
                version = LabelVersion(
                    image_id=image_id,
                    tag=tag,
                    number=self._free_number(image_id, tag, versions),
                    digest=digest,
                    parent_id=None if current is None else current.id,
                    source=submission.source,
                    author=submission.author,
                    client=submission.client,
                    model_version=submission.model_version,
                    organs=list(submission.organs),
                    doubts=list(submission.doubts),
                    info=_plain(submission.info),
                    submitted_at=_moment(submission, versions),
                )
                session.add(version)
                session.flush()
                manifest = self._manifest(image_id, tag, version.number)
                self._write_manifest(session, version)
        except BaseException:
            if manifest is not None:
                # Nobody was told that it is kept: it must not come back by `restore_from_files`.
                manifest.unlink(missing_ok=True)
            raise
        logger.info(
            "%s: version %d of label %r from %s", image_id, version.number, tag, version.source
        )
        return version

    def restore(self, image_id: str, tag: str, number: int, author: str) -> LabelVersion:
        """Add a version with the content of an older one, hidden or not, and return it.

        Raises:
            DatastoreError: If there is no such version.
            StateError: If its volume is gone or damaged.
        """
        old = self.version(image_id, tag, number)
        path = self.path(old.digest)
        if not path.is_file() or digest_of(path) != old.digest:
            raise StateError(
                f"{image_id}: the volume of version {number} is gone or damaged; restore a backup"
            )
        submission = Submission(
            source="restore",
            author=author,
            model_version=old.model_version,
            organs=old.organs,
            doubts=old.doubts,
            info={**old.info, "restored_number": number},
        )
        return self._add(image_id, tag, old.digest, submission)

    def hide(self, image_id: str, tag: str) -> int:
        """Put every version of an image's label out of sight, and return how many those were.

        The history keeps them, and `restore` brings one back.
        """
        with self._database.writing() as session:
            visible = [v for v in _ordered(session, image_id, tag) if v.hidden_at is None]
            moment = now()
            for version in visible:
                version.hidden_at = moment
                self._write_manifest(session, version)
        return len(visible)

    def current(self, tag: str | None = "final") -> list[LabelVersion]:
        """Return the newest visible version of each image, sorted by image; None means of every tag."""
        visible = _in_order(select(LabelVersion).where(LabelVersion.hidden_at.is_(None)))
        if tag is not None:
            visible = visible.where(LabelVersion.tag == tag)
        with self._database.reading() as session:
            # The last one of a key stays.
            found = {(v.image_id, v.tag): v for v in session.scalars(visible)}
        return [found[key] for key in sorted(found)]

    def current_digests(self, tag: str = "final") -> dict[str, str]:
        """Return image id -> SHA-256 of its current label; quick, for thousands of them."""
        query = (
            select(LabelVersion.image_id, LabelVersion.digest)
            .where(LabelVersion.hidden_at.is_(None), LabelVersion.tag == tag)
            .order_by(LabelVersion.submitted_at, LabelVersion.number)
        )
        with self._database.reading() as session:
            return {row.image_id: row.digest for row in session.execute(query)}

    def newest(self, image_id: str, tag: str) -> LabelVersion | None:
        """Return the current version of an image's label, None where there is none or it is hidden."""
        visible = [v for v in self.history(image_id, tag) if v.hidden_at is None]
        return visible[-1] if visible else None

    def history(self, image_id: str, tag: str) -> list[LabelVersion]:
        """Return every version of an image's label, hidden ones too, oldest first."""
        with self._database.reading() as session:
            return _ordered(session, image_id, tag)

    def of_every_tag(self, image_id: str) -> list[LabelVersion]:
        """Return every version of all labels of an image, hidden ones too, oldest first."""
        of_it = select(LabelVersion).where(LabelVersion.image_id == image_id)
        with self._database.reading() as session:
            return list(session.scalars(_in_order(of_it)))

    def version(self, image_id: str, tag: str, number: int) -> LabelVersion:
        """Return one version of an image's label.

        Raises:
            DatastoreError: If there is no such version.
        """
        found = next((v for v in self.history(image_id, tag) if v.number == number), None)
        if found is None:
            raise DatastoreError(f"{image_id}: label {tag!r} has no version {number}")
        return found

    def missing_organs(self, version: LabelVersion) -> tuple[str, ...]:
        """Return the organs of the version that this one took the place of, and that it has not."""
        earlier = self.history(version.image_id, version.tag)
        before = next((v.organs for v in earlier if v.id == version.parent_id), [])
        return tuple(organ for organ in before if organ not in version.organs)

    def mark_in_place(self, version_id: int) -> None:
        """Remember that the copy in `labels/<tag>/` of the studies folder is this version's."""
        with self._database.writing() as session:
            session.execute(
                update(LabelVersion).where(LabelVersion.id == version_id).values(is_in_place=True)
            )

    def records(self) -> list[dict[str, Any]]:
        """Return all that is known of every version, as JSON holds it; `merge` takes it back."""
        with self._database.reading() as session:
            versions = list(session.scalars(_in_order(select(LabelVersion))))
            numbers = {v.id: v.number for v in versions}
        return [as_record(v, numbers.get(v.parent_id or 0)) for v in versions]

    def restore_from_files(self) -> int:
        """Add the versions that lie on disk and that the database does not know; return how many.

        There are some after a damaged database was set aside, and after a kill before the commit.
        """
        with self._database.reading() as session:
            rows = session.execute(
                select(LabelVersion.image_id, LabelVersion.tag, LabelVersion.number)
            )
            known = {self._manifest(image, tag, number) for image, tag, number in rows}
        missing = (path for path in self._manifests() if path not in known)
        records = (read_record(path) for path in missing)
        added = self.merge(record for record in records if record is not None)
        if added:
            logger.warning("%d label versions were taken from the files into the database", added)
        return added

    def merge(self, records: Iterable[Mapping[str, Any]]) -> int:
        """Add the versions that are not here yet, with their history, and return how many.

        A version is the same if image, tag, moment and content are. One whose number is taken gets the next
        free one. Nothing that is here is changed; what was hidden after a version's moment hides that one.
        Each volume must be here already; a record without is left out.
        """
        ids: dict[tuple[str, str, int], int] = {}
        added = 0
        with self._database.writing() as session:
            for record in sorted(records, key=lambda r: (r["submitted_at"], r["number"])):
                key = (record["image_id"], record["tag"])
                here = _ordered(session, *key)
                found = next((v for v in here if _is_same(v, record)), None)
                if found is None:
                    if not self.path(record["digest"]).is_file():
                        logger.error("%s: version %d has no volume", key[0], record["number"])
                        continue
                    found = self._row(record, here, ids)
                    session.add(found)
                    session.flush()
                    self._write_manifest(session, found)
                    added += 1
                ids[key[0], key[1], record["number"]] = found.id
        return added

    def _row(
        self,
        record: Mapping[str, Any],
        here: list[LabelVersion],
        ids: Mapping[tuple[str, str, int], int],
    ) -> LabelVersion:
        """Return a new row for a record, among those that are here."""
        row = version_of(record)
        if any(v.number == row.number for v in here):
            row.number = self._free_number(row.image_id, row.tag, here)
        if record["parent"] is not None:
            by_number = {v.number: v.id for v in here}
            parent = ids.get((row.image_id, row.tag, record["parent"]))
            row.parent_id = parent or by_number.get(record["parent"])
        hidden = [v.hidden_at for v in here if v.hidden_at and v.hidden_at >= row.submitted_at]
        if hidden and row.hidden_at is None:
            row.hidden_at = max(hidden)
        return row

    def _free_number(self, image_id: str, tag: str, versions: Iterable[LabelVersion]) -> int:
        """Return the number after all that a row or a file has."""
        folder = self.folder / HISTORY / image_id
        stems = (path.stem.rpartition("-") for path in folder.glob("*.json"))
        on_disk = [int(number) for of, _, number in stems if of == tag and number.isdecimal()]
        return 1 + max([v.number for v in versions] + on_disk, default=0)

    def _manifest(self, image_id: str, tag: str, number: int) -> Path:
        return self.folder / HISTORY / image_id / f"{tag}-{number}.json"

    def _manifests(self) -> Iterator[Path]:
        yield from sorted((self.folder / HISTORY).glob("*/[!.]*.json"))

    def _write_manifest(self, session: Session, version: LabelVersion) -> None:
        parent = session.get(LabelVersion, version.parent_id) if version.parent_id else None
        path = self._manifest(version.image_id, version.tag, version.number)
        write_json(path, as_record(version, None if parent is None else parent.number))


def _in_order(query: Select[LabelVersion]) -> Select[LabelVersion]:
    return query.order_by(LabelVersion.submitted_at, LabelVersion.number)


def _ordered(session: Session, image_id: str, tag: str) -> list[LabelVersion]:
    """Return the versions of one label, oldest first."""
    of_it = select(LabelVersion).where(LabelVersion.image_id == image_id, LabelVersion.tag == tag)
    return list(session.scalars(_in_order(of_it)))


def _moment(submission: Submission, versions: Sequence[LabelVersion]) -> datetime:
    """Return when a label was submitted, by a clock that runs ahead at the latest now; no two at once."""
    if submission.submitted_at is None:
        return _after(versions)
    taken = {version.submitted_at for version in versions}
    moment = min(submission.submitted_at, now())
    while moment in taken:
        moment += _TICK
    return moment


def _after(versions: Sequence[LabelVersion]) -> datetime:
    """Return this moment; one after the newest version's where the clock was set back."""
    moment = now()
    return max(moment, versions[-1].submitted_at + _TICK) if versions else moment


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return `info` as JSON can hold it."""
    found: dict[str, Any] = json.loads(json.dumps(finite(dict(info)), default=str))
    return found


def _is_same(version: LabelVersion, record: Mapping[str, Any]) -> bool:
    moment = datetime.fromisoformat(record["submitted_at"])
    return version.digest == record["digest"] and version.submitted_at == moment
