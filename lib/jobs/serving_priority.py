"""Serving before training: a training stops between two steps while a server contours.

The sign is a shared claim, which the kernel takes back from a server that dies: no crash leaves a training
waiting.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.storage.process_locks import ProcessLock

FILE = "contouring.lock"
LONGEST_WAIT_S = 20.0
"""A step waits no longer: under requests without end the training goes on, slowly."""
_LOOK_S = 0.02


class ServingPriority:
    """Who may compute now, for the servers and the training of one studies folder."""

    def __init__(self, folder: Path) -> None:
        self._claim = ProcessLock(folder / FILE)
        self._mutex = threading.Lock()
        self._busy = 0

    @contextmanager
    def contouring(self) -> Iterator[None]:
        """Let no training take a step inside."""
        with self._mutex:
            self._busy += 1
            if self._busy == 1:
                self._claim.acquire_shared()
        try:
            yield
        finally:
            with self._mutex:
                self._busy -= 1
                if self._busy == 0:
                    self._claim.release()

    def give_way(self) -> float:
        """Return once no other process contours, or after `LONGEST_WAIT_S`; return the seconds that took."""
        began = time.monotonic()
        while not self._claim.is_free() and time.monotonic() - began < LONGEST_WAIT_S:
            time.sleep(_LOOK_S)
        return time.monotonic() - began
