"""Where a run is, for those who watch it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.recipes.schema import ScheduleConfig
from lib.training.budget import Budget
from lib.training.state import TrainingState
from lib.training.stopping import stopping_state
from lib.training.tracking import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is after an epoch.

    Attributes:
        epoch: Epochs done.
        total_epochs: Epochs planned.
        loss: Mean of the last epoch.
        learning_rate: At the end of the last epoch.
        metric: Mean DSC over cases and organs at the last validation; None before the first.
        best_metric: The best so far, by the recipe's `min_delta`.
        best_epoch: Its epoch.
        organ_dice: Organ -> mean DSC at the last validation.
        is_validated: Whether that validation was of this epoch.
        elapsed_s: Time spent, earlier sittings of a resumed run included.
        eta_s: Time left, by the mean of the epochs so far; early stopping is not foreseen.
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
    """Where a run is after an optimiser step.

    Attributes:
        step: Steps of the schedule that are behind.
        total_steps: Steps planned.
        epoch: The epoch it belongs to, from 1.
        loss: Of this step, on the crops of the first process.
        learning_rate: Of this step.
        elapsed_s: Time spent, earlier sittings included.
        eta_s: Time left, by the mean of the steps so far.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    learning_rate: float
    elapsed_s: float
    eta_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told how a run goes.

    Attributes:
        on_start: Called with the run's record (`lib.training.record`), before the first step.
        on_progress: Called after each epoch, once its checkpoint is on disk.
        on_step: Called after each step; steps are short, so it must return at once.
        trackers: Told of each epoch; see `lib.training.tracking`.
    """

    on_start: Callable[[Mapping[str, Any]], None] | None = None
    on_progress: Callable[[Progress], None] | None = None
    on_step: Callable[[Step], None] | None = None
    trackers: Sequence[Tracker] = ()


def time_left_s(done: float, planned: float, budget: Budget) -> float:
    """Return the seconds that a run still takes.

    By the time that each epoch or step took so far, but no longer than the budget lasts.
    """
    left = (planned - done) * budget.wall_s / done
    if budget.share > 0:
        left = min(left, budget.wall_s * max(0.0, 1 / budget.share - 1))
    return left


def progress_of(
    state: TrainingState, schedule: ScheduleConfig, budget: Budget, *, is_over: bool
) -> Progress:
    """Return where the run is; one that is over takes no more time, however many epochs were planned."""
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
