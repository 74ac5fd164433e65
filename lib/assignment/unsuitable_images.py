"""Images that are not worth contouring: marked by a user with a reason, and not assigned to anyone any more."""

from dataclasses import dataclass

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from lib.assignment import leases
from lib.errors import ConfigError, DatastoreError, StateError
from lib.storage.database import Database, transaction
from lib.storage.tables import UnsuitableImage, now

MAX_REASON = 500
"""Longest reason, in characters."""


def unsuitable_images(session: Session) -> dict[str, UnsuitableImage]:
    """Return image id -> row of each image that is unsuitable now."""
    return {row.image_id: row for row in session.scalars(_not_undone())}


def mark(session: Session, image_id: str, reason: str, by: str) -> UnsuitableImage:
    """Mark an image as unsuitable, end its leases, and return the new row.

    Raises:
        ConfigError: If the reason is empty or too long.
        StateError: If the image is marked already.
    """
    reason = reason.strip()
    if not 1 <= len(reason) <= MAX_REASON:
        raise ConfigError(
            f"{image_id}: a reason of {len(reason)} characters; 1 to {MAX_REASON} expected"
        )
    earlier = unsuitable_images(session).get(image_id)
    if earlier is not None:
        raise StateError(
            f"{image_id}: {earlier.by or 'a client without a name'} marked it as unsuitable already: "
            f"{earlier.reason}"
        )
    row = UnsuitableImage(image_id=image_id, reason=reason, by=by)
    session.add(row)
    session.flush()
    leases.end_all(session, image_id, leases.UNSUITABLE)
    return row


def undo(session: Session, image_id: str, by: str) -> UnsuitableImage:
    """Let an image be assigned again, and return its row.

    Raises:
        DatastoreError: If it is not marked as unsuitable.
    """
    row = unsuitable_images(session).get(image_id)
    if row is None:
        raise DatastoreError(f"{image_id}: not marked as unsuitable; nothing to undo")
    row.undone_by, row.undone_at = by, now()
    return row


@dataclass(frozen=True)
class UnsuitableImages:
    """The unsuitable images in the database; each method is a transaction of its own."""

    database: Database

    mark = transaction(mark)
    undo = transaction(undo)

    def all(self, *, with_undone: bool = False) -> list[UnsuitableImage]:
        """Return the marks that were not undone, or all marks that ever were, oldest first."""
        query = select(UnsuitableImage) if with_undone else _not_undone()
        with self.database.reading() as session:
            return list(session.scalars(query.order_by(UnsuitableImage.id)))


def _not_undone() -> Select[UnsuitableImage]:
    return select(UnsuitableImage).where(UnsuitableImage.undone_at.is_(None))
