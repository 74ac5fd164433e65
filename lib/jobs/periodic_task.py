"""An action that a background thread repeats."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 10.0
"""Longest time, in s, that `PeriodicTask.stop` waits for a running action."""


class PeriodicTask:
    """Calls `action` in one thread, from `start` until `stop`.

    Exceptions are logged and the action is called again: a full disk or a locked database must not end it for
    good.

    Args:
        name: Name of the thread.
        action: Called repeatedly; if it returns True, it is called again at once.
        every_s: Longest time, in s, from the end of one call to the next.
        error_message: Log message for an exception.
    """

    def __init__(
        self, name: str, action: Callable[[], object], *, every_s: float, error_message: str
    ) -> None:
        self._action = action
        self._every_s = every_s
        self._error_message = error_message
        self._stopping = threading.Event()
        self._wake = threading.Event()
        # One thread for the whole lifetime: a child process is killed when the thread that started it ends.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called; long actions check this."""
        return self._stopping.is_set()

    def start(self) -> "PeriodicTask":
        """Start the thread, and return this object."""
        self._thread.start()
        return self

    def wake(self) -> None:
        """Call the action now, or once more if it is running."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; a running action is waited for, at most `STOP_LIMIT_S`."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_LIMIT_S)

    def _run(self) -> None:
        while True:
            # Cleared before `_stopping` is checked: a `stop` or `wake` from here on is not lost.
            self._wake.clear()
            if self._stopping.is_set():
                return
            call_again: object = False
            try:
                call_again = self._action()
            except Exception:
                logger.exception("%s; it is tried again", self._error_message)
            if call_again is not True:
                self._wake.wait(self._every_s)
