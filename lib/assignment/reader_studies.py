"""Images that several people contour, each for themselves: how many are asked for, and who has submitted.

A *reading* is a final label that a person drew. A consensus of readings, or what a model saved, is none. What a
reviewer brings back from the history is the reading of the person who drew it, not the reviewer's.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from lib.errors import ConfigError
from lib.labels.history import FINAL
from lib.storage.database import Database
from lib.storage.tables import LabelVersion, ReaderStudy

MAX_READERS = 20

_DRAWN = ("client", "folder", "pacs")
_RESTORED = "restore"


def may_be_leased(
    *, wanted: int, submitted: Collection[str], holding: Collection[str], asks: str
) -> bool:
    """Return whether somebody may be given an image to contour.

    Args:
        wanted: How many readers the image is to have.
        submitted: Who has submitted a reading.
        holding: Who has a lease of it.
        asks: Whoever is to be given it; may be holding it already.
    """
    if asks in holding:
        return True
    return asks not in submitted and len(submitted) + len(holding) < wanted


def may_be_seen(
    *, wanted: int, submitted: Collection[str], asks: str | None, is_reviewer: bool
) -> bool:
    """Return whether somebody may see an image's final label: not before he has drawn his own.

    Args:
        wanted: How many readers the image is to have.
        submitted: Who has submitted a reading.
        asks: Who wants to see it; None where nobody logs in, and so nobody is known.
        is_reviewer: Whether that is somebody who judges the readings.
    """
    if wanted == 1 or not submitted or len(submitted) >= wanted:
        return True
    return asks is not None and (is_reviewer or asks in submitted)


def readings_by_reader(versions: Sequence[LabelVersion]) -> dict[str, LabelVersion]:
    """Return the newest visible reading of each reader, the oldest of them first.

    A reader is an author, or where nobody logs in a client; a file that somebody laid into the folder is of
    the reader without a name.

    Args:
        versions: All of one image's final label, hidden ones too, oldest first.
    """
    numbered = {version.number: version for version in versions}
    found: dict[str, LabelVersion] = {}
    for version in versions:
        drawn = _as_drawn(version, numbered)
        if version.hidden_at is None and drawn is not None:
            reader = drawn.author or drawn.client
            found.pop(reader, None)
            found[reader] = version
    return found


def _as_drawn(version: LabelVersion, numbered: dict[int, LabelVersion]) -> LabelVersion | None:
    """Return the version that a person drew and `version` has the content of; None where a person drew none."""
    while version.source == _RESTORED:
        older = numbered.get(version.info.get("restored_number", 0))
        if older is None or older.number >= version.number or older.digest != version.digest:
            # Of a backup whose numbers were taken here: all that is known is who brought it back.
            return version
        version = older
    return version if version.source in _DRAWN else None


def final_versions(session: Session, image_id: str) -> list[LabelVersion]:
    """Return all versions of an image's final label, hidden ones too, oldest first."""
    of_it = select(LabelVersion).where(LabelVersion.image_id == image_id, LabelVersion.tag == FINAL)
    return list(session.scalars(of_it.order_by(LabelVersion.submitted_at, LabelVersion.number)))


def submitted(session: Session) -> dict[str, set[str]]:
    """Return image id -> the readers who have submitted, of every image with a reading."""
    visible = LabelVersion.hidden_at.is_(None), LabelVersion.tag == FINAL
    who = select(LabelVersion.image_id, LabelVersion.author, LabelVersion.client)
    found: dict[str, set[str]] = {}
    for image_id, author, client in session.execute(
        who.where(*visible, LabelVersion.source.in_(_DRAWN)).distinct()
    ):
        found.setdefault(image_id, set()).add(author or client)
    restored = select(LabelVersion.image_id).where(*visible, LabelVersion.source == _RESTORED)
    for image_id in session.scalars(restored.distinct()).all():
        found[image_id] = set(readings_by_reader(final_versions(session, image_id)))
    return found


def wanted(session: Session) -> dict[str, int]:
    """Return image id -> readers, of every reader study."""
    return {study.image_id: study.readers for study in session.scalars(select(ReaderStudy))}


def readers_of(session: Session, image_id: str) -> int:
    """Return how many people an image is to be contoured by; 1 where it is in no study."""
    study = session.get(ReaderStudy, image_id)
    return 1 if study is None else study.readers


def set_readers(session: Session, image_id: str, readers: int, by: str) -> ReaderStudy:
    """Let so many people contour an image from now on, and return the study; 1 ends it.

    Raises:
        ConfigError: If it is not from 1 to `MAX_READERS`.
    """
    if not 1 <= readers <= MAX_READERS:
        raise ConfigError(f"{image_id}: {readers} readers; 1 to {MAX_READERS} expected")
    study = session.get(ReaderStudy, image_id)
    if study is None:
        study = ReaderStudy(image_id=image_id, readers=readers, by=by)
        session.add(study)
        session.flush()
    elif study.readers != readers:
        study.readers, study.by = readers, by
    return study


class ReaderStudies:
    """The images that several people contour; each method is a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_readers(self, image_id: str, readers: int, by: str) -> ReaderStudy:
        """Let so many people contour an image from now on, and return the study; 1 ends it.

        Raises:
            ConfigError: If it is not from 1 to `MAX_READERS`.
        """
        with self._database.writing() as session:
            return set_readers(session, image_id, readers, by)

    def readers_of(self, image_id: str) -> int:
        """Return how many people an image is to be contoured by; 1 where it is in no study."""
        with self._database.reading() as session:
            return readers_of(session, image_id)

    def all(self) -> list[ReaderStudy]:
        """Return the studies, sorted by image; without those that were ended."""
        several = select(ReaderStudy).where(ReaderStudy.readers > 1)
        with self._database.reading() as session:
            return list(session.scalars(several.order_by(ReaderStudy.image_id)))
