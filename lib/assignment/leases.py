"""Leases: a case that is assigned to an annotator is not assigned to others until the lease ends.

The functions take a session, so that a case can be chosen and leased in one transaction of `Database.writing`;
each method of `Leases` is a transaction of its own. A lease expires after its duration, so that a client that
stopped does not keep its case. No task does this: the next access ends an expired lease, as of its expiry.
"""

import logging
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lib.assignment import reader_studies
from lib.assignment.reader_studies import may_be_leased, readers_of, readings_by_reader
from lib.errors import DatastoreError, StateError
from lib.labels.history import FINAL, versions_of
from lib.storage.database import Database, transaction
from lib.storage.tables import Lease, now

logger = logging.getLogger(__name__)

LABEL = "label"
RELEASE = "release"
EXPIRY = "expiry"
SKIP = "skip"
UNSUITABLE = "unsuitable"
"""Values of `Lease.ended_by`."""

SKIPPED_FOR = timedelta(hours=12)
"""Time for which a skipped case is not assigned again to the annotator who skipped it."""

_MIN_EXTENSION = timedelta(seconds=60)
"""Shortest extension by activity that is written to the database."""
_NO_READERS: frozenset[str] = frozenset()


def active(session: Session, at: datetime) -> list[Lease]:
    """Return the active leases, oldest first, and end those that have expired.

    Args:
        session: From `Database.writing`.
        at: The present time.
    """
    leases = _not_ended(session)
    for lease in leases:
        if lease.expires_at <= at:
            _end(lease, lease.expires_at, EXPIRY)
    return [lease for lease in leases if lease.ended_at is None]


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
    """Lease an image to a holder, and return the lease; an active lease of that holder is extended.

    Args:
        session: From `Database.writing`.
        image_id: The image.
        holder: The holder; all clients without a name count as one holder.
        for_s: Duration in s from `at`.
        strategy: The strategy that chose the image; empty if the user named it.
        why: The strategy's reasons.
        at: The present time.

    Raises:
        StateError: If the image has all its readers, counting leases and submissions, or if this holder has
            submitted already.
    """
    moment = at or now()
    leases = [lease for lease in active(session, moment) if lease.image_id == image_id]
    own = next((lease for lease in leases if lease.holder == holder), None)
    if own is not None:
        return _extend(own, for_s, moment)
    wanted = readers_of(session, image_id)
    submitted = set(readings_by_reader(versions_of(session, image_id, FINAL)))
    holding = {lease.holder for lease in leases}
    if not may_be_leased(wanted=wanted, submitted=submitted, holding=holding, requester=holder):
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
    """Extend a lease to `for_s` seconds from now, if it would end earlier, and return it.

    Raises:
        DatastoreError: If this holder has no active lease of the image.
    """
    moment = at or now()
    return _extend(_own(session, image_id, holder, moment), for_s, moment)


def release(session: Session, image_id: str, holder: str) -> Lease:
    """End a lease before its expiry, and return it.

    Raises:
        DatastoreError: If this holder has no active lease of the image.
    """
    moment = now()
    return _end(_own(session, image_id, holder, moment), moment, RELEASE)


def skip(session: Session, image_id: str, holder: str) -> Lease:
    """End a lease, and keep its case from its holder for `SKIPPED_FOR`; return the lease.

    Raises:
        DatastoreError: If this holder has no active lease of the image.
    """
    moment = now()
    return _end(_own(session, image_id, holder, moment), moment, SKIP)


def skipped_by(session: Session, holder: str, at: datetime) -> dict[str, datetime]:
    """Return image id -> time until which it is not assigned to a holder, who has skipped it."""
    query = select(Lease.image_id, Lease.ended_at).where(
        Lease.holder == holder, Lease.ended_by == SKIP, Lease.ended_at > at - SKIPPED_FOR
    )
    rows = session.execute(query.order_by(Lease.ended_at))
    return {image_id: ended_at + SKIPPED_FOR for image_id, ended_at in rows if ended_at}


def end_all(session: Session, image_id: str, by: str) -> list[Lease]:
    """End every active lease of an image, and return them; `by` is a value of `Lease.ended_by`."""
    moment = now()
    ended = [lease for lease in active(session, moment) if lease.image_id == image_id]
    return [_end(lease, moment, by) for lease in ended]


def end_after_submission(session: Session, image_id: str) -> list[Lease]:
    """End the leases that the newest reading of an image completes, and return them.

    That is the lease of the reader who drew it. If that reader has none, but one lease is left and the image
    needs no further reader, that lease ends, since the case is complete.
    """
    moment = now()
    readings = readings_by_reader(versions_of(session, image_id, FINAL))
    leases = [lease for lease in active(session, moment) if lease.image_id == image_id]
    if not readings:
        return []
    reader, newest = list(readings.items())[-1]
    before = [lease for lease in leases if lease.granted_at <= newest.submitted_at]
    completed = [lease for lease in before if lease.holder == reader]
    if not completed and len(leases) == 1 and len(readings) >= readers_of(session, image_id):
        completed = before
    return [_end(lease, moment, LABEL) for lease in completed]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentState:
    """Wanted readers, submitted readings and leases of all images, at one moment."""

    wanted: Mapping[str, int] = field(default_factory=dict)
    """Image id -> number of readers, of the images in a reader study; 1 for all others."""
    submitted: Mapping[str, Set[str]] = field(default_factory=dict)
    """Image id -> readers who have submitted a reading."""
    holding: Mapping[str, Set[str]] = field(default_factory=dict)
    """Image id -> holders of a lease."""

    def is_finished(self, image_id: str) -> bool:
        """Return whether all readers of an image have submitted."""
        return len(self.submitted.get(image_id, _NO_READERS)) >= self.wanted.get(image_id, 1)


def assignment_state(
    session: Session, at: datetime, *, submitted_of: Collection[str] | None = None
) -> AssignmentState:
    """Return the state of every image; expired leases are ended.

    Args:
        session: From `Database.writing`; a lease is granted in the same one.
        at: The present time.
        submitted_of: Images whose submissions are returned, besides those in a reader study or leased; None for
            all images.
    """
    holding: dict[str, set[str]] = {}
    for lease in active(session, at):
        holding.setdefault(lease.image_id, set()).add(lease.holder)
    wanted = reader_studies.wanted(session)
    images = None if submitted_of is None else {*submitted_of, *wanted, *holding}
    return AssignmentState(
        wanted=wanted, submitted=reader_studies.submitted(session, images), holding=holding
    )


def may_lease(holder: str, image_id: str, state: AssignmentState) -> bool:
    """Return whether `grant` would lease an image to a holder."""
    return may_be_leased(
        wanted=state.wanted.get(image_id, 1),
        submitted=state.submitted.get(image_id, _NO_READERS),
        holding=state.holding.get(image_id, _NO_READERS),
        requester=holder,
    )


@dataclass(frozen=True)
class Leases:
    """All leases; safe to use from several threads and processes."""

    database: Database

    grant = transaction(grant)
    extend = transaction(extend)
    release = transaction(release)
    skip = transaction(skip)
    end_after_submission = transaction(end_after_submission)

    def active(self) -> list[Lease]:
        """Return the active leases, oldest first."""
        moment = now()
        with self.database.reading() as session:
            leases = _not_ended(session)
        if all(lease.expires_at > moment for lease in leases):
            return leases
        with self.database.writing() as session:
            return active(session, moment)

    def held_by(self, holder: str) -> list[Lease]:
        """Return the active leases of a holder, oldest first."""
        return [lease for lease in self.active() if lease.holder == holder]

    def extend_if_held(self, image_id: str, holder: str, for_s: float) -> bool:
        """Extend a lease because of its holder's activity; return whether there is one."""
        own = next((x for x in self.held_by(holder) if x.image_id == image_id), None)
        if own is None:
            return False
        if own.expires_at + _MIN_EXTENSION > now() + timedelta(seconds=for_s):
            return True
        try:
            self.extend(image_id, holder, for_s)
        except DatastoreError:
            # The lease ended after `held_by` had read it.
            return False
        return True


def _not_ended(session: Session) -> list[Lease]:
    """Return the leases without an end, including expired ones, oldest first."""
    not_ended = select(Lease).where(Lease.ended_at.is_(None))
    return list(session.scalars(not_ended.order_by(Lease.granted_at, Lease.id)))


def _own(session: Session, image_id: str, holder: str, moment: datetime) -> Lease:
    for lease in active(session, moment):
        if (lease.image_id, lease.holder) == (image_id, holder):
            return lease
    query = select(Lease).where(Lease.image_id == image_id, Lease.holder == holder)
    last = session.scalars(query.order_by(Lease.id.desc())).first()
    ended = (
        f"the last one ended by {last.ended_by} at {_as_utc_text(last.ended_at)}"
        if last is not None and last.ended_at is not None
        else "there never was one"
    )
    raise DatastoreError(
        f"{image_id}: {holder or 'a client without a name'} has no lease of this image; {ended}. "
        "GET /organnet/leases lists the active leases"
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
    names = ", ".join(sorted(name or "a reader without a name" for name in submitted))
    if holder in submitted:
        return (
            f"{image_id}: {names} contoured it already, and each reader contours an image once; "
            "a correction is submitted without a lease"
        )
    needs = "1 reader" if wanted == 1 else f"{wanted} readers"
    if len(submitted) >= wanted:
        return (
            f"{image_id}: contoured already by {names}, and it needs {needs}; to add one, ask a reviewer "
            "for a reader study (POST /organnet/readers/IMAGE)"
        )
    held = ", ".join(
        f"{x.holder or 'a client without a name'} until {_as_utc_text(x.expires_at)}"
        for x in leases
    )
    return (
        f"{image_id}: it needs {needs}, {len(submitted)} submitted, and it is leased to {held}; choose another "
        "image, or wait"
    )


def _as_utc_text(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")
