from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from lib.assignment import leases
from lib.assignment.reader_studies import ReaderStudies
from lib.assignment.readings import (
    AssignmentState,
    assignment_state,
    due,
    may_lease,
    newest_consensus,
    readings,
)
from lib.errors import StateError
from lib.labels.history import LabelHistory
from lib.storage.database import FILE, Database
from lib.storage.tables import now
from tests.readings import add_reading


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / FILE)
    yield made
    made.close()


@pytest.fixture
def history(database: Database, tmp_path: Path) -> LabelHistory:
    return LabelHistory(database, tmp_path)


def add_consensus(history: LabelHistory, of: list[int]) -> None:
    info = {"consensus": {"of": of}}
    add_reading(history, "a", "", f"of {of}", source="consensus", info=info)


def numbers_due(history: LabelHistory) -> list[int]:
    return [version.number for version in due(history.history("a", "final"))]


def test_readings_are_the_newest_of_each_reader_oldest_first(history: LabelHistory) -> None:
    assert readings(history, "a") == []
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    add_reading(history, "a", "ada", "three")
    add_consensus(history, [2, 3])
    assert [(v.author, v.number) for v in readings(history, "a")] == [("bob", 2), ("ada", 3)]


@pytest.mark.parametrize(
    ("holder", "image_id", "expected"),
    [
        ("ada", "untouched", True),
        ("ada", "held", False),
        ("bob", "held", True),
        ("ada", "done", False),
        ("ada", "study", False),
        ("bob", "study", True),
        ("bob", "full", False),
    ],
)
def test_an_image_is_open_for_who_may_read_it(
    holder: str, image_id: str, *, expected: bool
) -> None:
    stands = AssignmentState(
        wanted={"study": 2, "full": 2},
        submitted={"done": {"bob"}, "study": {"ada"}, "full": {"ada"}},
        holding={"held": {"bob"}, "full": {"ida"}},
    )
    assert may_lease(holder, image_id, stands) is expected


def test_a_study_is_finished_when_all_its_readers_have_submitted() -> None:
    submitted = {"a": {"ada"}, "b": {"ada"}, "c": {"ada", "bob"}}
    stands = AssignmentState(wanted={"b": 2, "c": 2}, submitted=submitted)
    assert [stands.is_finished(image) for image in "abcd"] == [True, False, True, False]


def test_standing_is_what_a_grant_goes_by(database: Database, history: LabelHistory) -> None:
    ReaderStudies(database).set_readers("study", 2, "eve")
    add_reading(history, "study", "ada", "one")
    add_reading(history, "done", "ada", "one")
    at = now()
    with database.writing() as session:
        leases.grant(session, "late", "bob", for_s=60.0, at=at - timedelta(hours=1))
        leases.grant(session, "held", "bob", for_s=60.0, at=at)
        found = assignment_state(session, at)
        assert found.wanted == {"study": 2}
        assert found.submitted == {"study": {"ada"}, "done": {"ada"}}
        assert found.holding == {"held": {"bob"}}
        for image in ("study", "done", "held", "late", "other"):
            for holder in ("ada", "bob"):
                may = may_lease(holder, image, found)
                with session.begin_nested() as attempt:
                    try:
                        leases.grant(session, image, holder, for_s=60.0, at=at)
                        was_granted = True
                    except StateError:
                        was_granted = False
                    attempt.rollback()
                assert was_granted is may, (image, holder)


def test_of_two_thousand_images_those_are_offered_that_were_not_read() -> None:
    images = [f"case_{n:04d}" for n in range(2000)]
    stands = AssignmentState(submitted={image: {"ada"} for image in images[::2]})
    assert sum(may_lease("bob", image, stands) for image in images) == 1000


def test_a_consensus_is_due_with_the_second_reader(history: LabelHistory) -> None:
    assert numbers_due(history) == []
    add_reading(history, "a", "ada", "one")
    assert numbers_due(history) == []
    add_reading(history, "a", "ada", "one again")
    assert numbers_due(history) == []
    add_reading(history, "a", "bob", "two")
    assert numbers_due(history) == [2, 3]


def test_a_consensus_is_due_again_only_when_a_reading_changes(history: LabelHistory) -> None:
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    add_consensus(history, [1, 2])
    assert numbers_due(history) == []
    add_reading(history, "a", "ada", "corrected")
    assert numbers_due(history) == [2, 4]
    add_consensus(history, [2, 4])
    assert numbers_due(history) == []
    add_reading(history, "a", "ida", "three")
    assert numbers_due(history) == [2, 4, 6]


def test_a_reviewer_may_decide_for_one_reading(history: LabelHistory) -> None:
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    add_consensus(history, [1, 2])
    history.restore("a", "final", 1, "eve")
    assert numbers_due(history) == []
    newest = history.newest("a", "final")
    assert newest is not None
    assert (newest.source, newest.author) == ("restore", "eve")


def test_after_everything_was_removed_the_count_begins_anew(history: LabelHistory) -> None:
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    add_consensus(history, [1, 2])
    history.hide("a", "final")
    assert numbers_due(history) == []
    assert newest_consensus(history.history("a", "final")) is None
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    assert numbers_due(history) == [4, 5]
