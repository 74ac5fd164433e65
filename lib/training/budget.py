"""How much time a run may take, by which clock, and how much it has taken."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lib.training.distributed import ALONE, Group

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
        group: Group = ALONE,
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
