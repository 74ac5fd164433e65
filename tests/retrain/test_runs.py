import pytest

from lib.errors import StateError
from lib.retrain.runs import Runs, RunState
from lib.storage.database import Database
from lib.storage.tables import Run

CASES = [{"image_id": "case_a", "digest": "1"}, {"image_id": "case_b", "digest": "2"}]


@pytest.fixture
def runs(database: Database) -> Runs:
    return Runs(database)


def queue(runs: Runs, *cases: dict[str, str]) -> Run:
    return runs.queue(why="for a test", request={"seed": 1}, cases=cases, initial_version=None)


def test_there_is_one_run_at_a_time(runs: Runs) -> None:
    first = queue(runs)
    with pytest.raises(StateError, match=f"training {first.id} is queued"):
        queue(runs)
    runs.update(first.id, state=RunState.REJECTED)
    assert queue(runs).id > first.id


def test_a_run_that_is_over_is_not_changed_any_more(runs: Runs) -> None:
    run = queue(runs)
    runs.update(run.id, state=RunState.STOPPED, outcome="stopped")
    after = runs.update(run.id, state=RunState.PROMOTED, outcome="too late")
    assert (after.state, after.outcome) == (RunState.STOPPED, "stopped")
    assert after.ended_at is not None
    assert runs.active() is None


def test_a_stopped_run_can_be_continued(runs: Runs) -> None:
    run = queue(runs)
    runs.update(run.id, state=RunState.STOPPED)
    assert runs.requeue(run.id).state == RunState.QUEUED
    with pytest.raises(StateError, match="cannot be continued"):
        runs.requeue(run.id)


def test_labels_count_as_evaluated_after_a_run_with_a_decision(runs: Runs) -> None:
    run = queue(runs, CASES[0])
    assert runs.evaluated_labels() == set()
    runs.update(run.id, state=RunState.FAILED)
    assert runs.evaluated_labels() == set()
    run = queue(runs, *CASES)
    runs.update(run.id, state=RunState.REJECTED)
    assert runs.evaluated_labels() == {("case_a", "1"), ("case_b", "2")}


def test_only_failures_after_the_last_other_run_are_counted(runs: Runs) -> None:
    for state in (RunState.FAILED, RunState.PROMOTED, RunState.FAILED, RunState.FAILED):
        runs.update(queue(runs).id, state=state)
    assert runs.failures() == 2
    runs.update(queue(runs).id, state=RunState.STOPPED)
    assert runs.failures() == 0


def test_notes_are_kept_in_their_order(runs: Runs) -> None:
    run = queue(runs)
    runs.update(run.id, note="one")
    runs.update(run.id, note="two")
    assert [note.split()[-1] for note in runs.get(run.id).notes] == ["one", "two"]


def test_an_unknown_run_is_an_error(runs: Runs) -> None:
    with pytest.raises(StateError, match="training 7 does not exist"):
        runs.get(7)
    with pytest.raises(StateError, match="training 7 does not exist"):
        runs.update(7, state=RunState.FAILED)
