import threading

from lib.jobs.keyed_lock import KeyedLock
from tests.waiting import LIMIT_S


def test_the_same_name_waits_and_another_name_does_not() -> None:
    locks = KeyedLock()
    finished: list[str] = []

    def work(name: str, result: str) -> None:
        with locks.of(name):
            finished.append(result)

    with locks.of("a"):
        second = threading.Thread(target=work, args=("a", "second"))
        second.start()
        work("b", "another")
        assert finished == ["another"]
        assert second.is_alive()
    second.join(timeout=LIMIT_S)
    assert finished == ["another", "second"]


def test_a_lock_is_dropped_when_no_thread_uses_it() -> None:
    locks = KeyedLock()
    for name in ("a", "b"):
        with locks.of(name):
            pass
    assert not list(locks._locks)
