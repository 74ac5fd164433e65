"""What a PACS lists and does not deliver: it is asked for again, less and less often, and the others go on."""

import logging
import threading
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from lib.pacs.deliveries import wait_s
from lib.storage.tables import now

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """A series or an object that was asked for in vain.

    Attributes:
        uid: Its SeriesInstanceUID or SOPInstanceUID.
        reason: Why, the last time.
        attempts: How often it was asked for.
        next_at: When it is asked for again.
    """

    uid: str
    reason: str
    attempts: int
    next_at: datetime


class RetryBackoff:
    """What is left out until its time comes; safe to use from threads. A restart asks for all of it at once."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._failed: dict[str, Undelivered] = {}

    def record_failure(self, uid: str, reason: str) -> None:
        """Note that one was asked for in vain; it waits twice as long each time."""
        with self._mutex:
            before = self._failed.get(uid)
            attempts = 1 + (0 if before is None else before.attempts)
            wait = wait_s(attempts)
            self._failed[uid] = Undelivered(
                uid=uid,
                reason=reason,
                attempts=attempts,
                next_at=now() + timedelta(seconds=wait),
            )
        logger.warning("%s: %s; it is asked for again in %.0f s", uid, reason, wait)

    def record_success(self, uid: str) -> None:
        """Note that one was delivered."""
        with self._mutex:
            self._failed.pop(uid, None)

    def forget_all_but(self, uids: Collection[str]) -> None:
        """Forget those that are not among `uids`: nobody asks for them any more."""
        with self._mutex:
            self._failed = {uid: one for uid, one in self._failed.items() if uid in uids}

    def is_due(self, uid: str) -> bool:
        """Return whether one may be asked for now."""
        with self._mutex:
            one = self._failed.get(uid)
        return one is None or one.next_at <= now()

    def undelivered(self) -> list[Undelivered]:
        """Return what was asked for in vain, the next to be asked for first."""
        with self._mutex:
            found = list(self._failed.values())
        return sorted(found, key=lambda one: one.next_at)
