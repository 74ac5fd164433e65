"""Locks by name, for work that must not run twice at once on the same item."""

import threading
from weakref import WeakValueDictionary


class KeyedLock:
    """One lock per name; a lock exists only while a thread holds it or waits for it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    def of(self, name: str) -> threading.Lock:
        """Return the lock of `name`, for a `with` statement; other names do not wait."""
        with self._mutex:
            return self._locks.setdefault(name, threading.Lock())
