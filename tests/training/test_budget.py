from dataclasses import dataclass

import pytest

from lib.errors import ConfigError
from lib.training.run import RunOptions
from lib.training.schedule import Budget


@dataclass
class Hands:
    """A clock that stands where it is put."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_wall_clock_time_counts_validation_too() -> None:
    wall, cpu = Hands(), Hands()
    budget = Budget(max_minutes=1, wall_clock=wall, cpu_clock=cpu)
    wall.now += 15
    assert budget.measure() == 0.25
    with budget.unmetered():
        wall.now += 30
        cpu.now += 99
    assert budget.measure() == 0.75
    assert (budget.spent_s, budget.cpu_s) == (45, 0)


def test_processor_time_leaves_validation_out() -> None:
    wall, cpu = Hands(), Hands()
    budget = Budget(cpu_minutes=1, wall_clock=wall, cpu_clock=cpu)
    cpu.now += 30
    with budget.unmetered():
        cpu.now += 500
    cpu.now += 15
    wall.now += 9999
    assert budget.measure() == 0.75
    assert budget.spent_s == 45


@pytest.mark.parametrize(("wall", "cpu"), [(1.0, None), (None, 1.0)])
def test_a_resumed_run_counts_its_earlier_sittings(wall: float | None, cpu: float | None) -> None:
    clock = Hands()
    first = Budget(max_minutes=1, wall_clock=clock, cpu_clock=clock)
    clock.now += 40
    first.measure()
    clock.now = 5.0
    second = Budget(max_minutes=wall, cpu_minutes=cpu, wall_clock=clock, cpu_clock=clock)
    second.restore(first.state())
    assert second.share == pytest.approx(40 / 60)
    clock.now += 20
    assert second.measure() == 1


def test_without_a_limit_time_is_counted_and_nothing_spent() -> None:
    clock = Hands()
    budget = Budget(wall_clock=clock, cpu_clock=clock)
    clock.now += 1e6
    assert budget.measure() == 0
    assert budget.wall_s == 1e6


def test_one_clock_limits_a_run() -> None:
    with pytest.raises(ConfigError, match="in wall-clock or in processor time, not in both"):
        RunOptions(max_minutes=1, cpu_minutes=1)
    with pytest.raises(ConfigError, match="must be above 0 minutes"):
        RunOptions(cpu_minutes=0)
