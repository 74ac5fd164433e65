"""Learning rate, time budget and early stopping of a training run."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lib.recipes.schema import ScheduleConfig
from lib.training.distributed import SINGLE_PROCESS, ProcessGroup


def learning_rate(schedule: ScheduleConfig, step: int, share_of_budget: float = 0.0) -> float:
    """Return the learning rate of step `step`, from 0; `share_of_budget` compresses a cosine schedule."""
    rate = schedule.learning_rate
    if step < schedule.warmup_steps:
        return rate * (step + 1) / schedule.warmup_steps
    if schedule.decay == "step":
        return float(rate * 0.1 ** (step // schedule.steps_per_epoch // schedule.decay_epochs))
    share = share_of_run(schedule, step, share_of_budget)
    return rate * 0.5 * (1 + math.cos(math.pi * share))


def share_of_run(schedule: ScheduleConfig, step: int, share_of_budget: float = 0.0) -> float:
    """Return the share of the run done before step `step`, 0 to 1: of steps, or of the budget if larger."""
    by_steps = step / (schedule.epochs * schedule.steps_per_epoch)
    return min(1.0, max(by_steps, share_of_budget))


Clock = Callable[[], float]


@dataclass(slots=True)
class Stopwatch:
    """Seconds of one clock, including earlier sessions of the run, without pauses."""

    clock: Clock
    earlier_s: float = 0.0
    _since: float = 0.0

    def __post_init__(self) -> None:
        self._since = self.clock()

    def session_s(self) -> float:
        """Return the seconds of this session."""
        return self.clock() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time inside this context."""
        start = self.clock()
        try:
            yield
        finally:
            self._since += self.clock() - start


class Budget:
    """Wall-clock and processor time of a run, one of which may be limited.

    Wall-clock time (`max_minutes`) includes everything from the first step on, so that the end of a run can be
    planned. Processor time (`cpu_minutes`) is that of all threads of the process, as the operating system
    counts it: on shared cores two runs of equal budget do the same amount of work. It includes the training
    steps and their crops only, so that a network that contours whole volumes slowly does not get fewer steps.
    GPU time is not included.

    If several processes train together, the wall-clock time of the first and the sum of the processor times are
    used: all processes take the same decision.

    A killed run loses the work since its last checkpoint, and that time is not counted.
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
        """Read the clocks and return the share of the budget that is spent; 0 without a limit.

        Every process of the run must call this equally often: the times are summed over the processes.
        """
        own_wall_s = self._wall.session_s() if self._group.is_first else 0.0
        wall_s, cpu_s = self._group.sum([own_wall_s, self._cpu.session_s()])
        self.wall_s = self._wall.earlier_s + wall_s
        self.cpu_s = self._cpu.earlier_s + cpu_s
        return self.share

    @property
    def share(self) -> float:
        """Share of the budget spent at the last `measure`; at 1 the run is over."""
        if self._limit_s is None:
            return 0.0
        return self.spent_s / self._limit_s if self._limit_s > 0 else 1.0

    @property
    def spent_s(self) -> float:
        """Seconds at the last `measure`, of the limited clock; wall-clock time without a limit."""
        return self.cpu_s if self._by_cpu else self.wall_s

    @contextmanager
    def unmetered(self) -> Iterator[None]:
        """Count no processor time inside this context: validation is not training."""
        with self._cpu.paused():
            yield

    def state(self) -> dict[str, float]:
        """Return the seconds at the last `measure`, for `restore`."""
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from the seconds of earlier sessions, of both clocks."""
        self._wall.earlier_s = self.wall_s = state["wall_s"]
        self._cpu.earlier_s = self.cpu_s = state["cpu_s"]


@dataclass(frozen=True, slots=True)
class StoppingState:
    """Progress of the validation metric of a run.

    Attributes:
        best: Index of the best validation so far; None before the first.
        waited: Number of later validations, none of which was better.
    """

    best: int | None
    waited: int


def stopping_state(values: Sequence[float], *, min_delta: float = 0.0) -> StoppingState:
    """Return the index of the best validation, and the number of validations after it.

    A validation is a new best if it exceeds the previous best by at least `min_delta`: small gains count once
    they add up (Prechelt 1998, *Early stopping - but when?*, the criterion UP with a threshold).

    Args:
        values: Mean DSC of each validation, in order.
        min_delta: Smallest gain that counts.
    """
    best = None
    for index, value in enumerate(values):
        if best is None or (value > values[best] and value - values[best] >= min_delta):
            best = index
    return StoppingState(best, 0 if best is None else len(values) - 1 - best)


def should_stop(values: Sequence[float], *, patience: int, min_delta: float) -> bool:
    """Return whether the last `patience` validations brought no gain of `min_delta`; 0 never stops."""
    return 0 < patience <= stopping_state(values, min_delta=min_delta).waited
