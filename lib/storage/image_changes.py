"""Record of the images whose labels or attributes changed; every server updates its lists in memory from it."""

from collections.abc import Collection

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from lib.storage.database import Database
from lib.storage.tables import ImageChange

KEPT = 10_000
"""Number of the newest changes that are kept; a process that has missed more reads everything again."""
_REMOVED_EVERY = 1000


def record_changes(session: Session, image_ids: Collection[str]) -> None:
    """Record that images changed, in the transaction that changes them.

    Args:
        session: From `Database.writing`.
        image_ids: The images; the same image may be given several times.
    """
    if not image_ids:
        return
    session.execute(insert(ImageChange), [{"image_id": image_id} for image_id in image_ids])
    newest = session.scalar(select(func.max(ImageChange.id))) or 0
    if newest % _REMOVED_EVERY < len(image_ids):
        session.execute(delete(ImageChange).where(ImageChange.id <= newest - KEPT))


class ImageChanges:
    """The changes that one reader has not seen yet; not thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_id: int | None = None

    def take(self) -> set[str] | None:
        """Return the images that changed since the last call; None if any image may have changed.

        The first call returns None.
        """
        with self._database.connection() as connection:
            if self._last_id is None:
                row = connection.exec_driver_sql("SELECT max(id) FROM image_changes").scalar()
                self._last_id = row or 0
                return None
            rows = connection.exec_driver_sql(
                "SELECT id, image_id FROM image_changes WHERE id > ? ORDER BY id", (self._last_id,)
            ).all()
            if not rows:
                return set()
            # Numbers are given without gaps, as a transaction that fails leaves none.
            is_complete = rows[0].id == self._last_id + 1
            self._last_id = rows[-1].id
            return {row.image_id for row in rows} if is_complete else None
