"""Locks by name, for work that must not run twice at once on the same item."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class KeyedLock:
    """One lock per name; a lock exists only while a thread holds it or waits for it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._users: Counter[str] = Counter()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Hold the lock of `name`; other names do not wait."""
        with self._mutex:
            lock = self._locks.setdefault(name, threading.Lock())
            self._users[name] += 1
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                self._users[name] -= 1
                if not self._users[name]:
                    del self._locks[name], self._users[name]
