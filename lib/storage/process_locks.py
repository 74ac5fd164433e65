"""Locks between processes that end with the process that holds them, however it ends (flock(2))."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ProcessLock:
    """What one process at a time may do; the kernel takes the claim back from a process that dies."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not inherited by child processes, which would go on process_lock it.
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def try_acquire(self) -> bool:
        """Return whether this process holds the claim now, without waiting for it."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire_shared(self) -> None:
        """Hold the claim together with others that share it; wait for one who has it alone."""
        fcntl.flock(self._handle, fcntl.LOCK_SH)

    def release(self) -> None:
        """Hold it no longer."""
        fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Hold it no longer, and forget it."""
        os.close(self._handle)

    def is_free(self) -> bool:
        """Return whether nobody else holds it; not to be asked by one who does."""
        if not self.try_acquire():
            return False
        self.release()
        return True


@contextmanager
def process_lock(path: Path) -> Iterator[None]:
    """Hold the lock that the file at `path` stands for; others, in whatever process, wait for it.

    A process that ends, however it ends, lets go. It cannot be held twice by one thread: that would wait for
    itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
