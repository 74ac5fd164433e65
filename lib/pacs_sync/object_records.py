"""The SEGs and RTSTRUCTs that were found in a PACS: each is looked at once, again if its scan changed."""

from collections.abc import Mapping

from sqlalchemy import select

from lib.storage.database import Database
from lib.storage.tables import PacsObject, PacsObjectScans, now

KEPT = "kept"
OURS = "ours"
REFUSED = "refused"
WAITING = "waiting"


class ObjectRecords:
    """What became of each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def by_uid(self) -> dict[str, PacsObject]:
        """Return SOPInstanceUID -> what became of the object."""
        with self._database.reading() as session:
            return {row.sop_uid: row for row in session.scalars(select(PacsObject))}

    def scans(self) -> dict[str, dict[str, int | None]]:
        """Return SOPInstanceUID -> series that it was drawn on -> its slices when it was looked at."""
        with self._database.reading() as session:
            return {row.sop_uid: row.slices for row in session.scalars(select(PacsObjectScans))}

    def refused(self) -> list[PacsObject]:
        """Return those that are no labels, with the reason, oldest first."""
        query = select(PacsObject).where(PacsObject.verdict == REFUSED)
        with self._database.reading() as session:
            return list(session.scalars(query.order_by(PacsObject.looked_at)))

    def save(self, found: PacsObject, slices: Mapping[str, int | None]) -> None:
        """Remember what became of one, and what of its scans was there, in place of what was known of it."""
        found.looked_at = now()
        with self._database.writing() as session:
            session.merge(found)
            session.merge(PacsObjectScans(sop_uid=found.sop_uid, slices=dict(slices)))
