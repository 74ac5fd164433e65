"""Progress reports of a training run, and the callbacks and trackers that receive them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lib.imaging.volumes import CtVolume, LabelVolume
from lib.recipes.schema import ScheduleConfig
from lib.training.schedule import Budget, stopping_state
from lib.training.state import TrainingState

logger = logging.getLogger(__name__)

FINISHED, STOPPED, FAILED = "FINISHED", "KILLED", "FAILED"
"""Status of a run at its end, in MLflow's terms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a run after an epoch.

    Attributes:
        epoch: Epochs done.
        total_epochs: Epochs planned.
        loss: Mean loss of the last epoch.
        learning_rate: Learning rate at the end of the last epoch.
        metric: Mean DSC over cases and organs at the last validation; None before the first.
        best_metric: Best mean DSC so far, by the recipe's `min_delta`.
        best_epoch: Epoch of the best validation.
        organ_dice: Organ -> mean DSC at the last validation.
        is_validated: Whether that validation was of this epoch.
        elapsed_s: Seconds spent, including earlier sessions of a resumed run.
        eta_s: Estimated seconds left, from the mean time of an epoch; early stopping is not predicted.
    """

    epoch: int
    total_epochs: int
    loss: float
    learning_rate: float
    metric: float | None
    best_metric: float | None
    best_epoch: int
    organ_dice: Mapping[str, float]
    is_validated: bool
    elapsed_s: float
    eta_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Progress of a run after an optimiser step.

    Attributes:
        step: Steps done.
        total_steps: Steps planned.
        epoch: Epoch of the step, from 1.
        loss: Loss of this step, on the crops of the first process.
        learning_rate: Learning rate of this step.
        elapsed_s: Seconds spent, including earlier sessions.
        eta_s: Estimated seconds left, from the mean time of a step.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    learning_rate: float
    elapsed_s: float
    eta_s: float


class Tracker(Protocol):
    """A recorder of a run's curves. An exception in a tracker ends its tracking, not the run."""

    def start(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Begin, or continue after the epochs of `history`; later entries of an earlier session are void.

        Args:
            record: Record of the run (`lib.training.record`).
            history: One entry for each finished epoch.
        """

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Track an epoch: `epoch`, `loss`, `learning_rate`, `spent_s`, and `organ_dice` if validated."""

    def contours(self, epoch: int, ct: CtVolume, label: LabelVolume) -> None:
        """Track the network's contours on the first validation case."""

    def end(self, status: str, /) -> None:
        """Close; `status` is `FINISHED`, `STOPPED` or `FAILED`."""


class Trackers:
    """Several trackers as one. A tracker that fails is logged once and then ignored.

    A full disk or a lost MLflow server must not end a training. The tracker is tried again when the run is
    resumed.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._working = list(trackers)

    def start(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Start each tracker."""
        self._call(lambda tracker: tracker.start(record, history))

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Report an epoch to each tracker."""
        self._call(lambda tracker: tracker.epoch(entry))

    def contours(self, epoch: int, ct: CtVolume, label: LabelVolume) -> None:
        """Report contours to each tracker."""
        self._call(lambda tracker: tracker.contours(epoch, ct, label))

    def end(self, status: str) -> None:
        """Close each tracker."""
        self._call(lambda tracker: tracker.end(status))

    def _call(self, method: Callable[[Tracker], None]) -> None:
        for tracker in list(self._working):
            try:
                method(tracker)
            # Database drivers and HTTP clients raise exceptions of their own, with no common base.
            except Exception as error:  # noqa: BLE001
                self._working.remove(tracker)
                logger.warning(
                    "%s stopped working (%s: %s); the training continues without it",
                    type(tracker).__name__,
                    type(error).__name__,
                    str(error).splitlines()[0] if str(error) else "no reason given",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCallbacks:
    """Functions and trackers that are called during a run.

    Attributes:
        on_start: Called with the run's record (`lib.training.record`) before the first step.
        on_progress: Called after each epoch, once its checkpoint is on disk.
        on_step: Called after each step; steps are short, so it must return at once.
        trackers: Called after each epoch.
    """

    on_start: Callable[[Mapping[str, Any]], None] | None = None
    on_progress: Callable[[Progress], None] | None = None
    on_step: Callable[[Step], None] | None = None
    trackers: Sequence[Tracker] = ()


def time_left_s(done: float, planned: float, budget: Budget) -> float:
    """Return the estimated seconds left, from the mean time of an epoch or step, within the budget."""
    left = (planned - done) * budget.wall_s / done
    if budget.share > 0:
        left = min(left, budget.wall_s * max(0.0, 1 / budget.share - 1))
    return left


def progress_of(
    state: TrainingState, schedule: ScheduleConfig, budget: Budget, *, is_over: bool
) -> Progress:
    """Return the progress of a run; with `is_over` no time is left, even if more epochs were planned."""
    validated = state.validated()
    best = stopping_state([e["mean_dice"] for e in validated], min_delta=schedule.min_delta).best
    return Progress(
        epoch=state.epoch,
        total_epochs=schedule.epochs,
        loss=state.history[-1]["loss"],
        learning_rate=state.history[-1]["learning_rate"],
        metric=validated[-1]["mean_dice"] if validated else None,
        best_metric=None if best is None else validated[best]["mean_dice"],
        best_epoch=0 if best is None else validated[best]["epoch"],
        organ_dice=validated[-1]["organ_dice"] if validated else {},
        is_validated=bool(state.history[-1].get("organ_dice")),
        elapsed_s=budget.wall_s,
        eta_s=0.0 if is_over else time_left_s(state.epoch, schedule.epochs, budget),
    )
