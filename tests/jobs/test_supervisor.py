import threading
import time

import pytest

from lib.jobs.supervisor import PeriodicTask
from tests.waiting import LIMIT_S


class Counted:
    """Counts its calls, and says when there were so many."""

    def __init__(self, enough: int = 3, *, again: bool = False, fails: bool = False) -> None:
        self.calls, self.enough, self.again, self.fails = 0, enough, again, fails
        self.is_enough = threading.Event()

    def __call__(self) -> bool:
        self.calls += 1
        if self.calls >= self.enough:
            self.is_enough.set()
        if self.fails:
            raise RuntimeError("no space")
        return self.again and self.calls < self.enough


def repeating(action: Counted, every_s: float) -> PeriodicTask:
    return PeriodicTask("test", action, every_s=every_s, error_message="it failed").start()


def test_the_action_is_repeated_until_stop() -> None:
    action = Counted()
    loop = repeating(action, 0.01)
    assert action.is_enough.wait(LIMIT_S)
    loop.stop()
    calls = action.calls
    time.sleep(0.1)
    assert action.calls == calls


def test_an_error_is_logged_and_does_not_end_the_task(caplog: pytest.LogCaptureFixture) -> None:
    action = Counted(fails=True)
    loop = repeating(action, 0.01)
    assert action.is_enough.wait(LIMIT_S)
    loop.stop()
    assert "it failed" in caplog.text


def test_an_action_with_more_to_do_is_called_at_once() -> None:
    action = Counted(enough=50, again=True)
    loop = repeating(action, 3600)
    assert action.is_enough.wait(LIMIT_S)
    loop.stop()
    assert action.calls == 50


def test_wake_and_stop_interrupt_a_long_wait() -> None:
    action = Counted(enough=2)
    loop = repeating(action, 3600)
    loop.wake()
    assert action.is_enough.wait(LIMIT_S)
    # Else it would wait an hour.
    loop.stop()
    assert loop.is_stopping
