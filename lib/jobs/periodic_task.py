"""What is done again and again beside the requests."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 10.0


class PeriodicTask:
    """Calls `action` in one thread, from `start` until `stop`.

    What it raises is logged, and it is called again: a full disk or a locked database must not end it for ever.

    Args:
        name: Of the thread.
        action: What is done; if it returns True, it is done again at once.
        every_s: Time from the end of one call to the next at most.
        trouble: What the log says where it failed.
    """

    def __init__(
        self, name: str, action: Callable[[], object], *, every_s: float, trouble: str
    ) -> None:
        self._action = action
        self._every_s = every_s
        self._trouble = trouble
        self._is_over = threading.Event()
        self._wake = threading.Event()
        # One thread for all its life: a child process is told to die with the thread that started it.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_over(self) -> bool:
        """Whether it was told to stop: an action that takes long looks here."""
        return self._is_over.is_set()

    def start(self) -> "PeriodicTask":
        """Begin, and return this."""
        self._thread.start()
        return self

    def wake(self) -> None:
        """Let the action be called now, or once more where it runs."""
        self._wake.set()

    def stop(self) -> None:
        """Return when the thread has ended; the action that runs is waited for, `STOP_LIMIT_S` at most."""
        self._is_over.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_LIMIT_S)

    def _run(self) -> None:
        while True:
            # Before the look at what ends it: a `stop` or a `wake` from here on is not lost.
            self._wake.clear()
            if self._is_over.is_set():
                return
            again: object = False
            try:
                again = self._action()
            except Exception:
                logger.exception("%s; it is tried again", self._trouble)
            if again is not True:
                self._wake.wait(self._every_s)
