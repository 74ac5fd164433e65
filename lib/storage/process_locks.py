"""Locks between processes; the kernel releases a lock when its process ends, even if killed (flock(2)).

filelock's `FileLock`, which the index of a store uses because one thread may take it twice, has no shared
locks, and polls, whereas these locks wait in the kernel.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ProcessLock:
    """A lock that one process holds alone or several share; the kernel releases it when a process dies."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_CLOEXEC: child processes do not inherit the handle; they would go on holding the lock.
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def try_acquire(self) -> bool:
        """Take the lock alone, without waiting; return whether this process holds it now."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire_shared(self) -> None:
        """Take the lock together with others that share it; wait while one process holds it alone."""
        fcntl.flock(self._handle, fcntl.LOCK_SH)

    def release(self) -> None:
        """Release the lock."""
        fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the lock, and close its file."""
        os.close(self._handle)

    def is_free(self) -> bool:
        """Return whether no other process holds the lock; the caller must not hold it."""
        if not self.try_acquire():
            return False
        self.release()
        return True


@contextmanager
def process_lock(path: Path) -> Iterator[None]:
    """Hold the lock of the file at `path`; other threads and processes wait for it.

    The kernel releases it when the process ends. A thread that takes it twice waits for itself (deadlock).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
