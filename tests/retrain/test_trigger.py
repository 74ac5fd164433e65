from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from lib.config import RetrainConfig
from lib.retrain.trigger import TriggerState, decide

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
CONFIG = RetrainConfig(min_new_labels=3, max_wait_s=3600, quiet_s=60, retry_after_s=300)


def minutes_ago(*minutes: float) -> list[datetime]:
    return [NOON - timedelta(minutes=m) for m in minutes]


def situation(*minutes: float, **changed: object) -> TriggerState:
    """Labels that came so many minutes before noon, among ten cases to train on."""
    waiting = minutes_ago(*minutes)
    plain = TriggerState(waiting=waiting, waiting_to_train=len(waiting), train_cases=10,
                      last_submission=max(waiting, default=None))  # fmt: skip
    return replace(plain, **changed)  # type: ignore[arg-type]


STOPPED = {"was_stopped": True, "last_ended": minutes_ago(4)[0]}
FAILED = {"failures": 1, "last_ended": minutes_ago(4)[0]}
TABLE = [
    ("no new label", situation(), False, "no new labels"),
    ("too few new labels", situation(5, 6), False, "2 of 3 new labels"),
    ("enough new labels", situation(5, 6, 7), True, "3 new labels are waiting"),
    ("many more labels: one run for all", situation(*range(2, 42)), True, "40 new labels"),
    ("a label was submitted just now", situation(0.5, 6, 7), False, "60 s without a submission"),
    ("no submission for long enough", situation(1, 6, 7), True, "3 new labels"),
    ("the oldest label has waited too long", situation(61), True, "the oldest since 2030-01-01 10:59 UTC"),
    ("too long, but another was just submitted", situation(61, 0.1), False, "60 s without"),
    ("the oldest label has waited almost too long", situation(59), False, "1 of 3"),
    ("a training runs", situation(5, 6, 7, is_running=True), False, "a training is running"),
    ("no case to train on", situation(5, 6, 7, train_cases=1), False, "the training set has 1 cases"),
    ("evaluation cases", situation(5, 6, 7, waiting_to_train=0), False, "all new labels are of evaluation"),
    ("stopped by hand after the newest label", situation(5, 6, 7, **STOPPED), False, "stopped by hand"),
    ("stopped by hand before the newest label", situation(3, 6, 7, **STOPPED), True, "3 new labels"),
    ("failed just now", situation(5, 6, 7, **FAILED), False, "the last 1 trainings failed"),
    ("failed longer ago", situation(8, 9, 10, failures=1, last_ended=minutes_ago(6)[0]), True, "3"),
    ("failed twice", situation(8, 9, 10, failures=2, last_ended=minutes_ago(6)[0]), False, "last 2"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "starts", "reason"), [row[1:] for row in TABLE],
                         ids=[row[0] for row in TABLE])  # fmt: skip
def test_a_training_starts_when(
    state: TriggerState,
    starts: bool,  # noqa: FBT001 - a table's
    reason: str,
) -> None:
    decision = decide(CONFIG, state, NOON)
    assert decision.start is starts
    assert reason in decision.reason


def test_no_training_starts_while_automatic_training_is_off() -> None:
    off = replace(CONFIG, auto_retrain=False)
    assert (
        decide(off, situation(5, 6, 7), NOON).reason == "automatic training is off (auto_retrain)"
    )


@pytest.mark.parametrize(
    "state", [situation(5), situation(0.5, 6, 7), situation(5, 6, 7, **FAILED)]
)
def test_the_next_decision_is_at_the_time_of_the_start(state: TriggerState) -> None:
    looked = decide(CONFIG, state, NOON).next_look
    assert looked is not None
    assert not decide(CONFIG, state, looked - timedelta(seconds=1)).start
    assert decide(CONFIG, state, looked).start


def test_the_wait_after_failures_doubles_up_to_one_day() -> None:
    def wait_s(failures: int) -> float:
        state = situation(5, 6, 7, failures=failures, last_ended=NOON)
        looked = decide(CONFIG, state, NOON).next_look
        assert looked is not None
        return (looked - NOON).total_seconds()

    assert [wait_s(n) for n in (1, 2, 3)] == [300, 600, 1200]
    assert wait_s(30) == 24 * 3600
