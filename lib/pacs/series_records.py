"""What a PACS listed, and which of it can be contoured: it outlives restarts, and hours without the PACS."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import select, update

from lib.storage.database import Database
from lib.storage.tables import PacsSeries


class SeriesCheck(str, Enum):
    """What was found out about a series.

    `UNCHECKED` until its slices' headers were looked at; `IGNORED` where it is no scan at all, such as a
    localizer, and nobody would miss it.
    """

    UNCHECKED = "unchecked"
    USABLE = "usable"
    REFUSED = "refused"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedSeries:
    """A series as a PACS lists it.

    Attributes:
        uid: SeriesInstanceUID (0020,000E).
        study_uid: StudyInstanceUID (0020,000D).
        about: What else is told of it, by DICOM keyword.
        slices: NumberOfSeriesRelatedInstances (0020,1209); None where it is not told.
        studies: In how many studies the PACS has a series of that UID.
    """

    uid: str
    study_uid: str
    about: Mapping[str, Any]
    slices: int | None = None
    studies: int = 1

    @property
    def as_stored(self) -> dict[str, Any]:
        """What is kept of it; where that changes, the series did."""
        return {**self.about, "slices": self.slices, "studies": self.studies}


class SeriesRecords:
    """The series of one PACS in the database.

    Args:
        database: The workflow's.
        pacs: Address of the PACS.
    """

    def __init__(self, database: Database, pacs: str) -> None:
        self._database = database
        self._pacs = pacs

    def listed(self) -> list[PacsSeries]:
        """Return the series that the PACS listed last time, sorted by UID."""
        query = select(PacsSeries).where(PacsSeries.pacs == self._pacs, PacsSeries.is_listed)
        with self._database.reading() as session:
            return list(session.scalars(query.order_by(PacsSeries.uid)))

    def replace(self, found: Iterable[ListedSeries]) -> bool:
        """Take over a new list, and return whether it differs; a series that changed is to be checked again."""
        wanted = {series.uid: series for series in found}
        with self._database.reading() as session:
            every = list(session.scalars(select(PacsSeries).where(PacsSeries.pacs == self._pacs)))
        known = {row.uid: row for row in every}
        new = [series for uid, series in wanted.items() if uid not in known]
        changed = [
            series
            for uid, series in wanted.items()
            if uid in known and _differs(known[uid], series)
        ]
        back = [uid for uid in wanted if uid in known and not known[uid].is_listed]
        gone = [row.uid for row in every if row.is_listed and row.uid not in wanted]
        if not (new or changed or back or gone):
            return False
        with self._database.writing() as session:
            session.add_all(
                PacsSeries(
                    pacs=self._pacs,
                    uid=series.uid,
                    study_uid=series.study_uid,
                    about=series.as_stored,
                    verdict=SeriesCheck.UNCHECKED.value,
                )
                for series in new
            )
            for series in changed:
                self._set(
                    session,
                    series.uid,
                    study_uid=series.study_uid,
                    about=series.as_stored,
                    verdict=SeriesCheck.UNCHECKED.value,
                )
            for uid in back:
                self._set(session, uid, is_listed=True)
            for uid in gone:
                self._set(session, uid, is_listed=False)
        return True

    def set_check(self, uid: str, verdict: SeriesCheck, reason: str = "") -> PacsSeries | None:
        """Remember what was found out about a series, and return what is known of it now."""
        with self._database.writing() as session:
            row = session.get(PacsSeries, (self._pacs, uid))
            if row is not None:
                row.verdict, row.reason = verdict.value, reason
        return row

    def _set(self, session: Any, uid: str, **values: Any) -> None:
        of_it = (PacsSeries.pacs == self._pacs, PacsSeries.uid == uid)
        session.execute(update(PacsSeries).where(*of_it).values(**values))


def _differs(row: PacsSeries, series: ListedSeries) -> bool:
    return row.study_uid != series.study_uid or row.about != series.as_stored
