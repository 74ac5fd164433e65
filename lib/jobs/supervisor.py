"""Background work of a server: actions repeated by a thread, and supervision of a worker process."""

import logging
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lib.storage.process_locks import ProcessLock

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


class Supervisor(ABC):
    """A periodic task that starts and watches one worker process.

    Of several servers over one studies folder only the one that holds the lock does this; when it ends, another
    takes over. The worker process ends with its server.

    Args:
        name: Name of the thread.
        lock_file: File that the acting server locks.
        every_s: Longest time, in s, between two calls of `tick`.
        error_message: Log message if `tick` raises.
    """

    def __init__(self, name: str, lock_file: Path, *, every_s: float, error_message: str) -> None:
        self._lock = ProcessLock(lock_file)
        self._task = PeriodicTask(name, self.tick, every_s=every_s, error_message=error_message)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker, or None if it is not running."""
        child = self._child
        return None if child is None or child.poll() is not None else child.pid

    def start(self) -> None:
        """Start the periodic task."""
        self._task.start()

    def stop(self) -> None:
        """End the periodic task and the worker process; the next server continues the unfinished work."""
        self._task.stop()
        self.kill_child()
        self._lock.release()

    def wake(self) -> None:
        """Call `tick` now: something has changed."""
        self._task.wake()

    @abstractmethod
    def tick(self) -> bool:
        """Do what is due; return True to be called again at once."""

    def kill_child(self) -> None:
        """End the worker process, if this server has started one, and close its pipes."""
        child = self._child
        if child is None:
            return
        if child.poll() is None:
            child.kill()
            child.wait(10)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                # Closing flushes, which fails if the process died before it had read everything.
                with suppress(OSError):
                    pipe.close()


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log; empty if there is no log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 400 * lines))
            return log.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
