from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from lib.errors import ConfigError
from lib.training.run import RunOptions
from lib.training.schedule import Budget, StoppingState, should_stop, stopping_state


@dataclass
class ManualClock:
    """A clock that only moves when a test sets it."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_wall_clock_time_counts_validation_too() -> None:
    wall, cpu = ManualClock(), ManualClock()
    budget = Budget(max_minutes=1, wall_clock=wall, cpu_clock=cpu)
    wall.now += 15
    assert budget.measure() == 0.25
    with budget.unmetered():
        wall.now += 30
        cpu.now += 99
    assert budget.measure() == 0.75
    assert (budget.spent_s, budget.cpu_s) == (45, 0)


def test_processor_time_leaves_validation_out() -> None:
    wall, cpu = ManualClock(), ManualClock()
    budget = Budget(cpu_minutes=1, wall_clock=wall, cpu_clock=cpu)
    cpu.now += 30
    with budget.unmetered():
        cpu.now += 500
    cpu.now += 15
    wall.now += 9999
    assert budget.measure() == 0.75
    assert budget.spent_s == 45


@pytest.mark.parametrize(("wall", "cpu"), [(1.0, None), (None, 1.0)])
def test_a_resumed_run_counts_the_time_of_its_earlier_parts(
    wall: float | None, cpu: float | None
) -> None:
    clock = ManualClock()
    first = Budget(max_minutes=1, wall_clock=clock, cpu_clock=clock)
    clock.now += 40
    first.measure()
    clock.now = 5.0
    second = Budget(max_minutes=wall, cpu_minutes=cpu, wall_clock=clock, cpu_clock=clock)
    second.restore(first.state())
    assert second.share == pytest.approx(40 / 60)
    clock.now += 20
    assert second.measure() == 1


def test_without_a_limit_time_is_counted_but_never_exceeded() -> None:
    clock = ManualClock()
    budget = Budget(wall_clock=clock, cpu_clock=clock)
    clock.now += 1e6
    assert budget.measure() == 0
    assert budget.wall_s == 1e6


def test_two_time_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_minutes and cpu_minutes are both set"):
        RunOptions(max_minutes=1, cpu_minutes=1)
    with pytest.raises(ConfigError, match="must be above 0 minutes"):
        RunOptions(cpu_minutes=0)


@pytest.mark.parametrize(
    ("values", "min_delta", "expected"),
    [
        ([], 0.0, StoppingState(None, 0)),
        ([0.5], 0.0, StoppingState(0, 0)),
        ([0.5, 0.6, 0.55], 0.0, StoppingState(1, 1)),
        # An equal value is no gain: the earlier weights remain the best.
        ([0.6, 0.6, 0.6], 0.0, StoppingState(0, 2)),
        ([0.5, 0.5 + 1e-9], 0.0, StoppingState(1, 0)),
        # Gains below min_delta count once their sum reaches it.
        ([0.50, 0.51, 0.52, 0.53], 0.02, StoppingState(2, 1)),
        ([0.50, 0.515, 0.5, 0.519], 0.02, StoppingState(0, 3)),
        ([0.0, 0.0], 0.0, StoppingState(0, 1)),
    ],
)
def test_the_best_validation_and_the_number_of_later_ones(
    values: Sequence[float], min_delta: float, expected: StoppingState
) -> None:
    assert stopping_state(values, min_delta=min_delta) == expected


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([], 1, "goes on"),
        ([0.5], 1, "goes on"),
        ([0.5, 0.5], 1, "stops"),
        ([0.5, 0.4], 2, "goes on"),
        ([0.5, 0.4, 0.45], 2, "stops"),
        ([0.5, 0.4, 0.51], 2, "goes on"),
        ([0.5, 0.4, 0.3, 0.2], 0, "goes on"),
    ],
)
def test_a_run_stops_after_patience_validations_without_a_gain(
    values: Sequence[float], patience: int, expected: str
) -> None:
    stops = should_stop(values, patience=patience, min_delta=0.0)
    assert ("stops" if stops else "goes on") == expected
