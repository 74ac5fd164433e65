"""What must not be done twice at once, by the name of what it is done to; other names do not wait."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class KeyedLock:
    """Locks by name, each there for as long as somebody has it or waits for it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._wanted: Counter[str] = Counter()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Let nobody else inside with the same name."""
        with self._mutex:
            lock = self._locks.setdefault(name, threading.Lock())
            self._wanted[name] += 1
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                self._wanted[name] -= 1
                if not self._wanted[name]:
                    del self._locks[name], self._wanted[name]
