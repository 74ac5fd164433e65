"""Who contours which case now: a case that was handed out is not handed out again while its lease holds.

The functions take a session, so that whoever chooses a case can choose and grant in one transaction of
`Database.writing`; the methods of `Leases` are a transaction each. A lease that nobody ends ends by itself: a
program that died keeps its case until then and no longer. Nothing runs for that: an expired lease is closed,
as of its expiry, when somebody looks next.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lib.assignment.reader_studies import (
    final_versions,
    may_be_leased,
    readers_of,
    readings_by_reader,
)
from lib.errors import DatastoreError, StateError
from lib.storage.database import Database
from lib.storage.tables import Lease, now

logger = logging.getLogger(__name__)

LABEL = "label"
RELEASE = "release"
EXPIRY = "expiry"

_WORTH_A_WRITE = timedelta(seconds=60)
"""Activity that would extend a lease by less is not written down."""


def active(session: Session, at: datetime) -> list[Lease]:
    """Return the leases that hold, oldest first, and close those that have expired.

    Args:
        session: Of `Database.writing`.
        at: This moment.
    """
    found = _open(session)
    for lease in found:
        if lease.expires_at <= at:
            _end(lease, lease.expires_at, EXPIRY)
    return [lease for lease in found if lease.ended_at is None]


def grant(
    session: Session,
    image_id: str,
    holder: str,
    *,
    for_s: float,
    strategy: str = "",
    why: Mapping[str, Any] | None = None,
    at: datetime | None = None,
) -> Lease:
    """Lease an image to somebody, and return the lease; the one he has already is extended.

    Args:
        session: Of `Database.writing`.
        image_id: The image.
        holder: Who gets it; without a name all who have none are one holder.
        for_s: How long, in seconds from `at`.
        strategy: That chose it; empty where it was taken by name.
        why: What the strategy said.
        at: This moment.

    Raises:
        StateError: If the image has all its readers, counting those who hold it and those who submitted, or
            if this one has submitted already.
    """
    moment = at or now()
    leases = [lease for lease in active(session, moment) if lease.image_id == image_id]
    own = next((lease for lease in leases if lease.holder == holder), None)
    if own is not None:
        return _extend(own, for_s, moment)
    wanted = readers_of(session, image_id)
    submitted = set(readings_by_reader(final_versions(session, image_id)))
    holding = {lease.holder for lease in leases}
    if not may_be_leased(wanted=wanted, submitted=submitted, holding=holding, asks=holder):
        raise StateError(_refusal(image_id, holder, wanted, submitted, leases))
    lease = Lease(
        image_id=image_id,
        holder=holder,
        strategy=strategy,
        why=dict(why or {}),
        granted_at=moment,
        expires_at=moment + timedelta(seconds=for_s),
    )
    session.add(lease)
    session.flush()
    return lease


def extend(
    session: Session, image_id: str, holder: str, for_s: float, *, at: datetime | None = None
) -> Lease:
    """Let a lease hold for `for_s` seconds from now, if it would end earlier, and return it.

    Raises:
        DatastoreError: If this holder has none of that image.
    """
    moment = at or now()
    return _extend(_own(session, image_id, holder, moment), for_s, moment)


def end(
    session: Session, image_id: str, holder: str, *, by: str, at: datetime | None = None
) -> Lease:
    """End a lease, and return it.

    Raises:
        DatastoreError: If this holder has none of that image.
    """
    moment = at or now()
    return _end(_own(session, image_id, holder, moment), moment, by)


def end_after_submission(
    session: Session, image_id: str, *, at: datetime | None = None
) -> list[Lease]:
    """End the leases of an image that its newest reading makes needless, and return them.

    That is the lease of whoever drew it. Where he has none, but one lease is left and the image needs no
    further reader, that one ends: the case is done, whoever did it.
    """
    moment = at or now()
    readings = readings_by_reader(final_versions(session, image_id))
    leases = [lease for lease in active(session, moment) if lease.image_id == image_id]
    if not readings:
        return []
    reader, newest = list(readings.items())[-1]
    before = [lease for lease in leases if lease.granted_at <= newest.submitted_at]
    done = [lease for lease in before if lease.holder == reader]
    if not done and len(leases) == 1 and len(readings) >= readers_of(session, image_id):
        done = before
    return [_end(lease, moment, LABEL) for lease in done]


class Leases:
    """All leases; safe to use from threads and processes at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def active(self) -> list[Lease]:
        """Return the leases that hold now, oldest first."""
        moment = now()
        with self._database.reading() as session:
            found = _open(session)
        if all(lease.expires_at > moment for lease in found):
            return found
        with self._database.writing() as session:
            return active(session, moment)

    def held_by(self, holder: str) -> list[Lease]:
        """Return the leases that somebody has now, oldest first."""
        return [lease for lease in self.active() if lease.holder == holder]

    def grant(
        self,
        image_id: str,
        holder: str,
        *,
        for_s: float,
        strategy: str = "",
        why: Mapping[str, Any] | None = None,
    ) -> Lease:
        """Lease an image to somebody, and return the lease; the one he has already is extended.

        Raises:
            StateError: If the image has all its readers, or this one has submitted already.
        """
        with self._database.writing() as session:
            return grant(session, image_id, holder, for_s=for_s, strategy=strategy, why=why)

    def extend(self, image_id: str, holder: str, for_s: float) -> Lease:
        """Let a lease hold for `for_s` seconds from now, if it would end earlier, and return it.

        Raises:
            DatastoreError: If this holder has none of that image.
        """
        with self._database.writing() as session:
            return extend(session, image_id, holder, for_s)

    def extend_if_held(self, image_id: str, holder: str, for_s: float) -> bool:
        """Extend a lease because of its holder's activity; return whether he has one."""
        own = next((one for one in self.held_by(holder) if one.image_id == image_id), None)
        if own is None:
            return False
        if own.expires_at + _WORTH_A_WRITE > now() + timedelta(seconds=for_s):
            return True
        try:
            self.extend(image_id, holder, for_s)
        except DatastoreError:
            # It ended this very moment.
            return False
        return True

    def release(self, image_id: str, holder: str) -> Lease:
        """End a lease before its time, and return it.

        Raises:
            DatastoreError: If this holder has none of that image.
        """
        with self._database.writing() as session:
            return end(session, image_id, holder, by=RELEASE)

    def end_by_label(self, image_id: str, holder: str) -> Lease:
        """End a lease because its holder has submitted, and return it.

        Raises:
            DatastoreError: If this holder has none of that image.
        """
        with self._database.writing() as session:
            return end(session, image_id, holder, by=LABEL)

    def end_after_submission(self, image_id: str) -> list[Lease]:
        """End the leases of an image that its newest reading makes needless, and return them."""
        with self._database.writing() as session:
            return end_after_submission(session, image_id)


def _open(session: Session) -> list[Lease]:
    """Return the leases that nobody ended, expired ones too, oldest first."""
    not_ended = select(Lease).where(Lease.ended_at.is_(None))
    return list(session.scalars(not_ended.order_by(Lease.granted_at, Lease.id)))


def _own(session: Session, image_id: str, holder: str, moment: datetime) -> Lease:
    for lease in active(session, moment):
        if (lease.image_id, lease.holder) == (image_id, holder):
            return lease
    of_them = select(Lease).where(Lease.image_id == image_id, Lease.holder == holder)
    last = session.scalars(of_them.order_by(Lease.id.desc())).first()
    ended = (
        f"the last one ended by {last.ended_by} at {_as_local_time(last.ended_at)}"
        if last is not None and last.ended_at is not None
        else "there never was one"
    )
    raise DatastoreError(
        f"{image_id}: {holder or 'a client without a name'} has no lease of this image; {ended}. "
        "GET /organnet/leases lists those that hold"
    )


def _extend(lease: Lease, for_s: float, moment: datetime) -> Lease:
    lease.expires_at = max(lease.expires_at, moment + timedelta(seconds=for_s))
    return lease


def _end(lease: Lease, moment: datetime, by: str) -> Lease:
    lease.ended_at, lease.ended_by = moment, by
    logger.info("%s: the lease of %r ended by %s", lease.image_id, lease.holder, by)
    return lease


def _refusal(
    image_id: str, holder: str, wanted: int, submitted: set[str], leases: list[Lease]
) -> str:
    names = ", ".join(sorted(one or "somebody without a name" for one in submitted))
    if holder in submitted:
        return (
            f"{image_id}: {names} contoured it already, and one reader contours an image once; "
            "a correction is submitted without a lease"
        )
    needs = "1 reader" if wanted == 1 else f"{wanted} readers"
    if len(submitted) >= wanted:
        return (
            f"{image_id}: contoured already by {names}, and it needs {needs}; for one more ask a reviewer "
            "for a reader study (POST /organnet/readers/IMAGE)"
        )
    held = ", ".join(
        f"{x.holder or 'somebody'} until {_as_local_time(x.expires_at)}" for x in leases
    )
    return (
        f"{image_id}: it needs {needs}, {len(submitted)} submitted, and it is leased to {held}; take another "
        "image, or wait"
    )


def _as_local_time(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")
