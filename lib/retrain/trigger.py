"""When a training starts: a pure function of what is waiting, what runs and what failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lib.config import RetrainConfig

MIN_TRAIN_CASES = 2
"""One case alone would be learned by heart."""
LONGEST_RETRY_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerState:
    """Everything that the decision rests on.

    Attributes:
        waiting: When each label was submitted that no ended run has seen, in any order.
        waiting_to_train: How many of these are of cases that are trained on.
        train_cases: Cases that may be trained on, old and new.
        last_submission: When anybody last submitted anything; None if nobody ever did.
        is_running: Whether a training runs, or is about to.
        failures: Runs that failed one after another, up to now.
        last_ended: When the last run ended; None if there was none.
        was_stopped: Whether somebody stopped that run.
    """

    waiting: Sequence[datetime]
    waiting_to_train: int
    train_cases: int
    last_submission: datetime | None
    is_running: bool = False
    failures: int = 0
    last_ended: datetime | None = None
    was_stopped: bool = False


@dataclass(frozen=True, slots=True)
class TriggerDecision:
    """Whether to start now, why or why not, and when to look again; None is at the next label."""

    start: bool
    reason: str
    next_look: datetime | None = None


def decide(config: RetrainConfig, situation: TriggerState, now: datetime) -> TriggerDecision:
    """Return whether a training starts at `now`.

    It starts once `min_new_labels` are waiting or the oldest of them has waited `max_wait_s`, and `quiet_s`
    have passed without a submission. Labels that come while one runs wait, all together, for the one after it.
    """
    obstacle = _obstacle(config, situation)
    if obstacle is not None:
        return TriggerDecision(start=False, reason=obstacle)
    count = len(situation.waiting)
    due = min(situation.waiting) + timedelta(seconds=config.max_wait_s)
    if count < config.min_new_labels and now < due:
        text = f"{count} of {config.min_new_labels} new labels are waiting"
        return TriggerDecision(start=False, reason=text, next_look=due)
    for until, text in _pauses(config, situation):
        if now < until:
            return TriggerDecision(start=False, reason=text, next_look=until)
    why = f"{count} new labels are waiting"
    if count < config.min_new_labels:
        why += f", the oldest since {min(situation.waiting):%Y-%m-%d %H:%M} UTC"
    return TriggerDecision(start=True, reason=why)


def _obstacle(config: RetrainConfig, situation: TriggerState) -> str | None:
    """Return what stands in the way until somebody does something; None where nothing does."""
    obstacles = (
        (not config.auto_retrain, "automatic training is off (auto_retrain)"),
        (situation.is_running, "a training runs"),
        (not situation.waiting, "no new labels"),
        (
            situation.train_cases < MIN_TRAIN_CASES,
            f"{situation.train_cases} cases may be trained on, {MIN_TRAIN_CASES} are needed besides those "
            "that judge the models",
        ),
        (
            not situation.waiting_to_train,
            "the new labels are all of cases that judge the models; none would be learned from",
        ),
        (
            bool(situation.waiting) and _is_stopped(situation),
            "the last training was stopped by hand; a new label or POST /train/ starts the next",
        ),
    )
    return next((text for holds, text in obstacles if holds), None)


def _is_stopped(situation: TriggerState) -> bool:
    ended = situation.last_ended
    return situation.was_stopped and ended is not None and max(situation.waiting) <= ended


def _pauses(config: RetrainConfig, situation: TriggerState) -> list[tuple[datetime, str]]:
    """Return until when to wait, and why."""
    pauses = []
    if situation.failures and situation.last_ended:
        wait_s = min(config.retry_after_s * 2.0 ** (situation.failures - 1), LONGEST_RETRY_S)
        until = situation.last_ended + timedelta(seconds=wait_s)
        text = f"the last {situation.failures} trainings failed; the next try is at {until:%Y-%m-%d %H:%M} UTC"
        pauses.append((until, text))
    if situation.last_submission:
        until = situation.last_submission + timedelta(seconds=config.quiet_s)
        pauses.append((until, f"waiting for {config.quiet_s:g} s without a submission"))
    return pauses
