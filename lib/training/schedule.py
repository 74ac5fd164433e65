"""Learning rate, time budget and early stopping of a training run."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lib.recipes.schema import ScheduleConfig
from lib.training.distributed import SINGLE_PROCESS, ProcessGroup


def learning_rate(schedule: ScheduleConfig, step: int, share_of_budget: float = 0.0) -> float:
    """Return the rate of step `step`, counted from 0; `share_of_budget` hurries a cosine to its end."""
    rate = schedule.learning_rate
    if step < schedule.warmup_steps:
        return rate * (step + 1) / schedule.warmup_steps
    if schedule.decay == "step":
        return float(rate * 0.1 ** (step // schedule.steps_per_epoch // schedule.decay_epochs))
    share = share_of_run(schedule, step, share_of_budget)
    return rate * 0.5 * (1 + math.cos(math.pi * share))


def share_of_run(schedule: ScheduleConfig, step: int, share_of_budget: float = 0.0) -> float:
    """Return how much of the run lies behind step `step`, 0 to 1: by steps, or by budget if that is more."""
    by_steps = step / (schedule.epochs * schedule.steps_per_epoch)
    return min(1.0, max(by_steps, share_of_budget))


Clock = Callable[[], float]


@dataclass(slots=True)
class Stopwatch:
    """Seconds by one clock, those of earlier sittings included; a pause is not counted."""

    clock: Clock
    earlier_s: float = 0.0
    _since: float = 0.0

    def __post_init__(self) -> None:
        self._since = self.clock()

    def own_s(self) -> float:
        """Return the seconds of this sitting."""
        return self.clock() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the count what happens inside."""
        began = self.clock()
        try:
            yield
        finally:
            self._since += self.clock() - began


class Budget:
    """Wall-clock and processor time of a run, one of which may be limited.

    Wall-clock time (`max_minutes`) counts everything from the first step on, so that a run ends when it was
    said to. Processor time (`cpu_minutes`) is that of all threads of the process, as the operating system
    counts it: on cores that others use too, two runs of one budget do the same amount of work. It counts the
    training steps alone, with the making of their crops: a network that is slow to contour whole volumes is not
    given fewer steps for it. What a GPU computes is not processor time.

    Of several processes that train together, the first one's wall-clock time counts, and the sum of their
    processor times: all of them come to the same decision.

    A killed run loses what it did since its last checkpoint, and the time of it.
    """

    def __init__(
        self,
        *,
        max_minutes: float | None = None,
        cpu_minutes: float | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        wall_clock: Clock = time.monotonic,
        cpu_clock: Clock = time.process_time,
    ) -> None:
        self._group = group
        self._by_cpu = cpu_minutes is not None
        minutes = cpu_minutes if self._by_cpu else max_minutes
        self._limit_s = None if minutes is None else minutes * 60
        self._wall = Stopwatch(wall_clock)
        self._cpu = Stopwatch(cpu_clock)
        self.wall_s = 0.0
        """Wall-clock seconds at the last `measure`."""
        self.cpu_s = 0.0
        """Seconds of processor time at the last `measure`."""

    def measure(self) -> float:
        """Read the clocks; return the share of the budget that is spent, 0 where there is no limit.

        Every process of the run must come here equally often.
        """
        own_wall_s = self._wall.own_s() if self._group.is_first else 0.0
        wall_s, cpu_s = self._group.sum([own_wall_s, self._cpu.own_s()])
        self.wall_s = self._wall.earlier_s + wall_s
        self.cpu_s = self._cpu.earlier_s + cpu_s
        return self.share

    @property
    def share(self) -> float:
        """Share of the budget that was spent at the last `measure`; at 1 the run is over."""
        if self._limit_s is None:
            return 0.0
        return self.spent_s / self._limit_s if self._limit_s > 0 else 1.0

    @property
    def spent_s(self) -> float:
        """Seconds at the last `measure`, by the clock that is limited; wall-clock where none is."""
        return self.cpu_s if self._by_cpu else self.wall_s

    @contextmanager
    def unmetered(self) -> Iterator[None]:
        """Count no processor time inside: validation is not training."""
        with self._cpu.paused():
            yield

    def state(self) -> dict[str, float]:
        """Return what `restore` takes: the seconds at the last `measure`."""
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from the seconds of earlier sittings, by both clocks."""
        self._wall.earlier_s = self.wall_s = state["wall_s"]
        self._cpu.earlier_s = self.cpu_s = state["cpu_s"]


@dataclass(frozen=True, slots=True)
class StoppingState:
    """Where a run stands by its validations.

    Attributes:
        best: Index of the best validation so far; None before the first.
        waited: Validations since then, none of which was better.
    """

    best: int | None
    waited: int


def stopping_state(values: Sequence[float], *, min_delta: float = 0.0) -> StoppingState:
    """Return which validation was the best, and how many followed it.

    A validation is the best if it is above the best one before it, by `min_delta` at least: small steps count
    once they add up (Prechelt 1998, *Early stopping - but when?*, the criterion UP with a threshold).

    Args:
        values: Mean DSC of each validation, in order.
        min_delta: Least gain that counts.
    """
    best = None
    for index, value in enumerate(values):
        if best is None or (value > values[best] and value - values[best] >= min_delta):
            best = index
    return StoppingState(best, 0 if best is None else len(values) - 1 - best)


def should_stop(values: Sequence[float], *, patience: int, min_delta: float) -> bool:
    """Return whether the last `patience` validations brought no gain of `min_delta`; 0 never stops."""
    return 0 < patience <= stopping_state(values, min_delta=min_delta).waited
