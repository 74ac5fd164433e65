"""Decision when a training starts: a pure function of waiting labels, running and failed trainings."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lib.config import RetrainConfig

MIN_TRAIN_CASES = 2
"""Smallest number of training cases; a single case would be overfitted."""
LONGEST_RETRY_S = 24 * 3600.0
"""Longest wait after failed trainings, in s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerState:
    """Values that the decision is based on."""

    waiting: Sequence[datetime]
    """Submission times of the labels that no evaluated run has used, in any order."""
    waiting_to_train: int
    """Number of these labels in the training set."""
    train_cases: int
    """Number of cases in the training set, old and new."""
    last_submission: datetime | None
    """Time of the newest submission; None if there is none."""
    is_running: bool = False
    """Whether a training is running or queued."""
    failures: int = 0
    """Number of consecutive failed runs up to now."""
    last_ended: datetime | None = None
    """Time when the last run ended; None if there was none."""
    was_stopped: bool = False
    """Whether that run was stopped by hand."""


@dataclass(frozen=True, slots=True)
class TriggerDecision:
    """Whether to start now, the reason, and when to decide again; None means at the next label."""

    start: bool
    reason: str
    next_look: datetime | None = None


def decide(config: RetrainConfig, state: TriggerState, now: datetime) -> TriggerDecision:
    """Return whether a training starts at `now`.

    It starts once `min_new_labels` are waiting or the oldest of them has waited `max_wait_s`, and `quiet_s`
    have passed without a submission. Labels that are submitted during a training wait for the next one.
    """
    blocker = _blocker(config, state)
    if blocker is not None:
        return TriggerDecision(start=False, reason=blocker)
    count = len(state.waiting)
    due = min(state.waiting) + timedelta(seconds=config.max_wait_s)
    if count < config.min_new_labels and now < due:
        text = f"{count} of {config.min_new_labels} new labels are waiting"
        return TriggerDecision(start=False, reason=text, next_look=due)
    for until, text in _pauses(config, state):
        if now < until:
            return TriggerDecision(start=False, reason=text, next_look=until)
    why = f"{count} new labels are waiting"
    if count < config.min_new_labels:
        why += f", the oldest since {min(state.waiting):%Y-%m-%d %H:%M} UTC"
    return TriggerDecision(start=True, reason=why)


def _blocker(config: RetrainConfig, state: TriggerState) -> str | None:
    """Return why no training can start, now or after any wait; None if nothing blocks it."""
    blockers = (
        (not config.auto_retrain, "automatic training is off (auto_retrain)"),
        (state.is_running, "a training is running"),
        (not state.waiting, "no new labels"),
        (
            state.train_cases < MIN_TRAIN_CASES,
            f"the training set has {state.train_cases} cases and needs {MIN_TRAIN_CASES}; evaluation cases do "
            "not count",
        ),
        (
            not state.waiting_to_train,
            "all new labels are of evaluation cases, which are never trained on",
        ),
        (
            bool(state.waiting) and _is_stopped(state),
            "the last training was stopped by hand; a new label or POST /train/ starts the next",
        ),
    )
    return next((text for applies, text in blockers if applies), None)


def _is_stopped(state: TriggerState) -> bool:
    ended = state.last_ended
    return state.was_stopped and ended is not None and max(state.waiting) <= ended


def _pauses(config: RetrainConfig, state: TriggerState) -> list[tuple[datetime, str]]:
    """Return the times until which to wait, and the reasons."""
    pauses = []
    if state.failures and state.last_ended:
        wait_s = min(config.retry_after_s * 2.0 ** (state.failures - 1), LONGEST_RETRY_S)
        until = state.last_ended + timedelta(seconds=wait_s)
        text = f"the last {state.failures} trainings failed; the next attempt is at {until:%Y-%m-%d %H:%M} UTC"
        pauses.append((until, text))
    if state.last_submission:
        until = state.last_submission + timedelta(seconds=config.quiet_s)
        pauses.append((until, f"waiting for {config.quiet_s:g} s without a submission"))
    return pauses
