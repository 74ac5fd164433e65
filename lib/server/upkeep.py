"""What is done every few seconds beside the requests."""

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from lib.errors import OrganNetError

logger = logging.getLogger(__name__)


class Repeating:
    """Calls `action` in a thread, at once and then every `every_s` seconds or when woken, until `stop`.

    What `action` raises because of a disk, a file or the database is logged, and it is called again.

    Args:
        action: What is done.
        every_s: Time from the end of one call to the next at most.
        trouble: What the log says where it failed.
    """

    def __init__(
        self,
        action: Callable[[], object],
        *,
        every_s: float,
        trouble: str = "the labels' folder could not be looked at",
    ) -> None:
        self._action = action
        self._every_s = every_s
        self._trouble = trouble
        self._is_over = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let the action be called now, or once more where it runs."""
        self._wake.set()

    def stop(self) -> None:
        """Return when the thread has ended; the action that runs is waited for."""
        self._is_over.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            # Before the look at what ends it: a `stop` or a `wake` from here on is not lost.
            self._wake.clear()
            if self._is_over.is_set():
                return
            try:
                self._action()
            except (OrganNetError, OSError, SQLAlchemyError):
                logger.exception("%s; it is tried again", self._trouble)
            self._wake.wait(self._every_s)
