"""The time left of a computation, worked out by hand from its steps and from an earlier computation."""

import pytest

from lib.errors import CancelledRequestError
from lib.jobs.progress import Progress, ProgressState


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_time_left_follows_the_steps_and_the_earlier_durations() -> None:
    clock = Clock()
    progress = Progress({"network": 2.0, "restore": 5.0, "write": 1.0}, clock=clock)
    assert progress.state() is None
    progress.step("prepare")
    clock.now_s = 1.0
    assert progress.state() == ProgressState("prepare", 0, 1, None), "how many steps will follow?"
    progress.step("network", 0, 4)
    clock.now_s = 2.0
    # 4 steps of 2 s, of which 1 s is over; then 5 + 1 s.
    assert progress.state() == ProgressState("network", 0, 4, 13.0)
    clock.now_s = 5.0
    progress.step("network", 1, 4)
    # 4 s a step, three steps left, then 6 s.
    assert progress.state() == ProgressState("network", 1, 4, 18.0)
    clock.now_s = 17.0
    progress.step("restore")
    clock.now_s = 30.0
    assert progress.state() == ProgressState("restore", 0, 1, 1.0), "later than usual"
    progress.end()
    assert progress.seconds == {"prepare": 1.0, "network": 4.0, "restore": 13.0}


def test_a_first_computation_has_no_estimate_before_its_first_step() -> None:
    progress = Progress({})
    progress.step("read")
    assert progress.state() == ProgressState("read", 0, 1, None)


def test_a_cancelled_computation_ends_at_its_next_step() -> None:
    progress = Progress({})
    progress.step("network", 0, 4)
    progress.cancel()
    with pytest.raises(CancelledRequestError, match="cancelled; nothing was stored"):
        progress.step("network", 1, 4)
