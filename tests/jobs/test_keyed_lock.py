import threading

from lib.jobs.keyed_lock import KeyedLock
from tests.waiting import LIMIT_S


def test_one_name_waits_and_another_does_not() -> None:
    turns = KeyedLock()
    came: list[str] = []

    def come(name: str, said: str) -> None:
        with turns.of(name):
            came.append(said)

    with turns.of("a"):
        second = threading.Thread(target=come, args=("a", "second"))
        second.start()
        come("b", "another")
        assert came == ["another"]
        assert second.is_alive()
    second.join(timeout=LIMIT_S)
    assert came == ["another", "second"]


def test_a_name_is_forgotten_when_nobody_wants_it() -> None:
    turns = KeyedLock()
    for name in ("a", "b"):
        with turns.of(name):
            pass
    assert not turns._locks
