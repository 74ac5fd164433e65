"""The outbox: which label versions a PACS does not have yet, and when the next try is."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from lib.storage.database import Database
from lib.storage.tables import Delivery, LabelVersion, now

FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 600.0
"""Between two tries: twice as long each time, up to this."""


class DeliveryRecords:
    """The label versions on their way to one PACS.

    Args:
        database: The workflow's.
        pacs: Address of the PACS.
    """

    def __init__(self, database: Database, pacs: str) -> None:
        self._database = database
        self._pacs = pacs

    def by_version(self) -> dict[tuple[str, int], Delivery]:
        """Return (image id, version's number) -> delivery."""
        query = select(Delivery).where(Delivery.pacs == self._pacs)
        with self._database.reading() as session:
            return {(row.image_id, row.number): row for row in session.scalars(query)}

    def due(
        self, versions: Iterable[LabelVersion], at: datetime | None = None
    ) -> list[LabelVersion]:
        """Return those of `versions` that are to be sent now, the oldest first."""
        moment, known = at or now(), self.by_version()
        found = []
        for version in versions:
            row = known.get((version.image_id, version.number))
            if row is None or (
                row.delivered_at is None and not row.is_given_up and row.next_at <= moment
            ):
                found.append(version)
        return sorted(found, key=lambda version: version.submitted_at)

    def record_attempt(self, version: LabelVersion, sop_uid: str) -> int:
        """Note that a version is about to be sent, and return how often it was tried before."""
        with self._database.writing() as session:
            row = session.get(Delivery, (self._pacs, sop_uid))
            if row is None:
                row = Delivery(
                    pacs=self._pacs,
                    sop_uid=sop_uid,
                    image_id=version.image_id,
                    number=version.number,
                    attempts=0,
                )
                session.add(row)
            before = row.attempts
            row.attempts = before + 1
            row.next_at = now() + timedelta(seconds=wait_s(row.attempts))
        return before

    def record_success(self, sop_uid: str) -> None:
        """Note that the PACS has it."""
        self._change(sop_uid, delivered_at=now(), trouble="")

    def record_failure(self, sop_uid: str, trouble: str, *, is_final: bool = False) -> None:
        """Note why it did not arrive; where `is_final`, it is not tried again."""
        self._change(sop_uid, trouble=trouble, is_given_up=is_final)

    def retry_now(self) -> None:
        """Let what waits be tried at once: the PACS answers again."""
        with self._database.writing() as session:
            for row in session.scalars(_waiting(self._pacs)):
                row.next_at = now()

    def waiting(self) -> list[Delivery]:
        """Return what did not arrive yet, oldest first."""
        with self._database.reading() as session:
            return list(session.scalars(_waiting(self._pacs).order_by(Delivery.next_at)))

    def _change(self, sop_uid: str, **values: Any) -> None:
        with self._database.writing() as session:
            row = session.get(Delivery, (self._pacs, sop_uid))
            if row is not None:
                for key, value in values.items():
                    setattr(row, key, value)


def wait_s(attempts: int) -> float:
    """Return how long to wait after so many tries."""
    return float(min(FIRST_WAIT_S * 2 ** min(attempts - 1, 20), LONGEST_WAIT_S))


def _waiting(pacs: str) -> Any:
    return select(Delivery).where(
        Delivery.pacs == pacs, Delivery.delivered_at.is_(None), Delivery.is_given_up.is_(False)
    )
