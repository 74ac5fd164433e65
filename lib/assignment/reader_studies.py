"""Reader studies: images that several readers contour independently, their readings, and the consensus.

A *reading* is a final label that a person drew, not a consensus of readings or a model's label. A version
that a reviewer restores from the history is a reading of the person who drew it, not of the reviewer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from lib.errors import ConfigError
from lib.labels.history import (
    CONSENSUS,
    DRAWN,
    FINAL,
    RESTORE,
    versions_of,
)
from lib.storage.database import Database, transaction
from lib.storage.tables import LabelVersion, ReaderStudy

MAX_READERS = 20
"""Largest number of readers of an image."""
MIN_FOR_CONSENSUS = 2
"""Smallest number of readings that a consensus is made of."""

_MOST_IN_QUERY = 500
"""Largest number of images that a query names; for more it is faster to read all."""


def may_be_leased(
    *, wanted: int, submitted: Collection[str], holding: Collection[str], requester: str
) -> bool:
    """Return whether a reader may get a lease of an image.

    Args:
        wanted: Number of readers that the image is to have.
        submitted: Readers who have submitted a reading.
        holding: Readers who have a lease of it.
        requester: The requesting reader, who may have a lease already.
    """
    if requester in holding:
        return True
    return requester not in submitted and len(submitted) + len(holding) < wanted


def may_be_seen(
    *, wanted: int, submitted: Collection[str], requester: str | None, is_reviewer: bool
) -> bool:
    """Return whether a user may see an image's final label; readers may only after their own submission.

    Args:
        wanted: Number of readers that the image is to have.
        submitted: Readers who have submitted a reading.
        requester: The requesting user; None without a login.
        is_reviewer: Whether that user reviews the readings.
    """
    if wanted == 1 or not submitted or len(submitted) >= wanted:
        return True
    return requester is not None and (is_reviewer or requester in submitted)


def readings_by_reader(versions: Sequence[LabelVersion]) -> dict[str, LabelVersion]:
    """Return the newest visible reading of each reader, the oldest of them first.

    A reader is an author, or a client without a login; files in the labels folder belong to the reader
    with an empty name.

    Args:
        versions: All versions of one image's final label, including hidden ones, oldest first.
    """
    by_number = {version.number: version for version in versions}
    readings: dict[str, LabelVersion] = {}
    for version in versions:
        original = _drawn_version(version, by_number)
        if version.hidden_at is None and original is not None:
            reader = original.author or original.client
            readings.pop(reader, None)
            readings[reader] = version
    return readings


def _drawn_version(
    version: LabelVersion, by_number: Mapping[int, LabelVersion]
) -> LabelVersion | None:
    """Return the version of the same content that a person drew; None if no person drew it."""
    while version.source == RESTORE:
        older = by_number.get(version.info.get("restored_number", 0))
        if older is None or older.number >= version.number or older.digest != version.digest:
            # Merging a backup can change numbers, so this is another version: only the restorer is known.
            return version
        version = older
    return version if version.source in DRAWN else None


def submitted(session: Session, image_ids: Collection[str] | None = None) -> dict[str, set[str]]:
    """Return image id -> readers who have submitted, of every image with a reading.

    Args:
        session: A session.
        image_ids: Only these images; None for all.
    """
    visible = [LabelVersion.hidden_at.is_(None), LabelVersion.tag == FINAL]
    if image_ids is not None and len(image_ids) <= _MOST_IN_QUERY:
        visible.append(LabelVersion.image_id.in_(image_ids))
    columns = select(LabelVersion.image_id, LabelVersion.author, LabelVersion.client)
    readers: dict[str, set[str]] = {}
    for image_id, author, client in session.execute(
        columns.where(*visible, LabelVersion.source.in_(DRAWN)).distinct()
    ):
        readers.setdefault(image_id, set()).add(author or client)
    restored = select(LabelVersion.image_id).where(*visible, LabelVersion.source == RESTORE)
    for image_id in session.scalars(restored.distinct()).all():
        readers[image_id] = set(readings_by_reader(versions_of(session, image_id, FINAL)))
    return readers


def wanted(session: Session) -> dict[str, int]:
    """Return image id -> number of readers, of every reader study."""
    return {study.image_id: study.readers for study in session.scalars(select(ReaderStudy))}


def readers_of(session: Session, image_id: str) -> int:
    """Return the number of readers that an image is to have; 1 without a study."""
    study = session.get(ReaderStudy, image_id)
    return 1 if study is None else study.readers


def set_readers(session: Session, image_id: str, readers: int, by: str) -> ReaderStudy:
    """Set the number of readers of an image, and return the study; 1 ends the study.

    Raises:
        ConfigError: If `readers` is not from 1 to `MAX_READERS`.
    """
    if not 1 <= readers <= MAX_READERS:
        raise ConfigError(f"{image_id}: {readers} readers requested; 1 to {MAX_READERS} expected")
    study = session.get(ReaderStudy, image_id)
    if study is None:
        study = ReaderStudy(image_id=image_id, readers=readers, by=by)
        session.add(study)
        session.flush()
    elif study.readers != readers:
        study.readers, study.by = readers, by
    return study


@dataclass(frozen=True)
class ReaderStudies:
    """The reader studies in the database; each method is a transaction of its own."""

    database: Database

    set_readers = transaction(set_readers)

    def readers_of(self, image_id: str) -> int:
        """Return the number of readers that an image is to have; 1 without a study."""
        with self.database.reading() as session:
            return readers_of(session, image_id)

    def all(self) -> list[ReaderStudy]:
        """Return the studies that were not ended, sorted by image."""
        several = select(ReaderStudy).where(ReaderStudy.readers > 1)
        with self.database.reading() as session:
            return list(session.scalars(several.order_by(ReaderStudy.image_id)))


def newest_consensus(versions: Sequence[LabelVersion]) -> LabelVersion | None:
    """Return the newest visible consensus among the versions of one final label, oldest first."""
    visible = [v for v in versions if v.source == CONSENSUS and v.hidden_at is None]
    return visible[-1] if visible else None


def reading_numbers(consensus: LabelVersion) -> list[int]:
    """Return the version numbers of the readings that a consensus was made from."""
    return list(consensus.info.get(CONSENSUS, {}).get("of", ()))


def is_made_from(
    consensus: LabelVersion, readings: Sequence[LabelVersion], versions: Sequence[LabelVersion]
) -> bool:
    """Return whether a consensus was made from the contours of exactly these readings.

    Digests are compared, because a reading that was restored from the history has another number and the same
    contours: no new consensus is needed, and the version that a reviewer restored stays the current label.
    """
    digests = {version.number: version.digest for version in versions}
    used = sorted(digests.get(number, "") for number in reading_numbers(consensus))
    return used == sorted(version.digest for version in readings)


def due_readings(versions: Sequence[LabelVersion]) -> list[LabelVersion]:
    """Return the readings that a consensus is to be made from now, oldest first; none if it is not due.

    Args:
        versions: All versions of one image's final label, including hidden ones, oldest first.
    """
    current = list(readings_by_reader(versions).values())
    if len(current) < MIN_FOR_CONSENSUS:
        return []
    last = newest_consensus(versions)
    return [] if last is not None and is_made_from(last, current, versions) else current
