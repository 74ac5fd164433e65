"""Progress of one computation by stage, with an estimate of the time left, and its cancellation."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lib.errors import CancelledRequestError

STAGES = ("read", "prepare", "network", "restore", "write")
"""Stages of a request for contours, in their order."""

Step = Callable[[str, int, int], object]
"""Called before each step of a stage: name of the stage, number of steps done, and their total."""


@dataclass(frozen=True, slots=True)
class ProgressState:
    """The progress at one moment.

    Attributes:
        stage: Name of the present stage, one of `STAGES`.
        done: Number of its steps that are done.
        total: Number of its steps.
        seconds_left: Expected time in s until the end of the last stage; None if nothing was measured yet.
    """

    stage: str
    done: int
    total: int
    seconds_left: float | None


class Progress:
    """Stage and step of one computation; another thread may read it, and cancel the computation.

    Args:
        usual_s: Stage -> duration in s of one of its steps in an earlier computation; empty if there was none.
        clock: Returns a time in s.
    """

    def __init__(
        self, usual_s: Mapping[str, float], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._usual_s = usual_s
        self._clock = clock
        self._present = ("", 0, 1, 0.0)
        self.seconds: dict[str, float] = {}
        """Stage that has ended -> duration in s of one of its steps."""
        self.is_cancelled = False

    def step(self, stage: str, done: int = 0, total: int = 1) -> None:
        """Report the next step; the steps of an ensemble's stage may come in several parts.

        Raises:
            CancelledRequestError: If the computation was cancelled.
        """
        self.raise_if_cancelled()
        name, _, _, began = self._present
        if stage != name:
            self.end()
            began = self._clock()
        # Assigned in one step, so that a reader never sees a mixture of two.
        self._present = (stage, done, max(total, done, 1), began)

    def end(self) -> None:
        """Record the duration of the present stage."""
        name, _, total, began = self._present
        if name:
            self.seconds[name] = (self._clock() - began) / total

    def cancel(self) -> None:
        """Make the next `step` raise an error."""
        self.is_cancelled = True

    def raise_if_cancelled(self) -> None:
        """Raise `CancelledRequestError` if the computation was cancelled."""
        if self.is_cancelled:
            raise CancelledRequestError(
                "the request for contours was cancelled; nothing was stored"
            )

    def state(self) -> ProgressState | None:
        """Return the present stage; None before the first one."""
        stage, done, total, began = self._present
        if not stage:
            return None
        later = STAGES[STAGES.index(stage) + 1 :]
        elapsed_s = self._clock() - began
        left_s: float | None = None
        if done:
            left_s = elapsed_s / done * (total - done)
        elif stage in self._usual_s:
            left_s = max(0.0, self._usual_s[stage] * total - elapsed_s)
        # The number of the network's steps is not known before its stage.
        if left_s is not None and "network" not in later:
            left_s = round(left_s + sum(self._usual_s.get(name, 0.0) for name in later), 1)
            return ProgressState(stage, done, total, left_s)
        return ProgressState(stage, done, total, None)
