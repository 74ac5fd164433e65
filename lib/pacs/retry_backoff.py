"""Exponential backoff for items that a PACS lists and does not deliver; other items go on meanwhile."""

import logging
import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from lib.storage.tables import now

logger = logging.getLogger(__name__)

FIRST_WAIT_S = 5.0
"""Waiting time in s after the first failure; it doubles with each further one."""
LONGEST_WAIT_S = 600.0
"""Upper limit of the waiting time in s."""


def wait_s(attempts: int) -> float:
    """Return the waiting time in s after this number of failed requests."""
    return float(min(FIRST_WAIT_S * 2 ** min(attempts - 1, 20), LONGEST_WAIT_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """A series or an object whose last request failed."""

    uid: str
    """Its SeriesInstanceUID or SOPInstanceUID."""
    reason: str
    """The last error."""
    attempts: int
    """Number of failed requests."""
    next_at: datetime
    """Time of the next request."""


class RetryBackoff:
    """Items whose last request failed, each with its waiting time; thread-safe, and empty after a restart."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._failed: dict[str, Undelivered] = {}

    def record_failure(self, uid: str, reason: str) -> None:
        """Record that the request of an item failed; its waiting time doubles."""
        with self._mutex:
            previous = self._failed.get(uid)
            attempts = 1 + (0 if previous is None else previous.attempts)
            wait = wait_s(attempts)
            self._failed[uid] = Undelivered(
                uid=uid, reason=reason, attempts=attempts, next_at=now() + timedelta(seconds=wait)
            )
        logger.warning("%s: %s; it is requested again in %.0f s", uid, reason, wait)

    def record_success(self, uid: str) -> None:
        """Record that an item was delivered."""
        with self._mutex:
            self._failed.pop(uid, None)

    def forget_all_but(self, uids: Collection[str]) -> None:
        """Forget the items that are not among `uids`, as they are not requested any more."""
        with self._mutex:
            self._failed = {uid: item for uid, item in self._failed.items() if uid in uids}

    def is_due(self, uid: str) -> bool:
        """Return whether an item may be requested now."""
        with self._mutex:
            item = self._failed.get(uid)
        return item is None or item.next_at <= now()

    def undelivered(self) -> list[Undelivered]:
        """Return the items whose last request failed, sorted by the time of the next request."""
        with self._mutex:
            items = list(self._failed.values())
        return sorted(items, key=lambda item: item.next_at)
