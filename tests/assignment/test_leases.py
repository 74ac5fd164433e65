import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import select

from lib.assignment import leases
from lib.assignment.leases import AssignmentState, Leases, assignment_state, may_lease
from lib.assignment.reader_studies import ReaderStudies
from lib.config import APP_DIR
from lib.errors import DatastoreError, StateError
from lib.labels.history import LabelHistory
from lib.storage.database import Database
from lib.storage.tables import Lease, now
from tests.readings import add_reading
from tests.waiting import LIMIT_S, wait_until

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
HOUR_S = 3600.0
IMAGES = [f"case_{number:03d}" for number in range(200)]

LEASE_ALL_CASES = """
import random, sys
from pathlib import Path
from lib.assignment.leases import assignment_state, may_lease
from lib.assignment import leases
from lib.storage.database import Database
from lib.storage.tables import now
path, holder, images = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
database = Database(path)
print("ready", flush=True)
sys.stdin.readline()
is_first = True
while True:
    with database.writing() as session:
        at = now()
        state = assignment_state(session, at)
        # A holder may lease its own case again: in this test each process must take a new one.
        free = [image for image in images if not state.holding.get(image)]
        remaining = [image for image in free if may_lease(holder, image, state)]
        if not remaining:
            break
        leases.grant(session, random.choice(remaining), holder, for_s=6000.0, at=at)
    if is_first:
        print("leased", flush=True)
        sys.stdin.readline()
        is_first = False
"""

LEASE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from lib.assignment import leases
from lib.storage.database import Database
database = Database(Path(sys.argv[1]))
with database.writing() as session:
    leases.grant(session, "kept", "dead", for_s=float(sys.argv[2]))
with database.writing() as session:
    leases.grant(session, "undone", "dead", for_s=600.0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def assignments(database: Database) -> Leases:
    return Leases(database)


def rows(database: Database) -> list[tuple[str, str, str | None]]:
    """Return image, holder and `ended_by` of every lease, including ended ones."""
    with database.reading() as session:
        return [(r.image_id, r.holder, r.ended_by) for r in session.scalars(select(Lease))]


def test_a_leased_case_is_not_leased_to_another_reader(assignments: Leases) -> None:
    lease = assignments.grant("a", "ada", for_s=HOUR_S, strategy="first", why={"why": "by name"})
    assert (lease.strategy, lease.why) == ("first", {"why": "by name"})
    assert lease.expires_at - lease.granted_at == timedelta(hours=1)
    with pytest.raises(
        StateError, match="a: it needs 1 reader, 0 submitted, and it is leased to ada"
    ):
        assignments.grant("a", "bob", for_s=HOUR_S)
    assignments.grant("b", "bob", for_s=HOUR_S)
    assert [(x.image_id, x.holder) for x in assignments.active()] == [("a", "ada"), ("b", "bob")]
    assert [x.image_id for x in assignments.held_by("bob")] == ["b"]


def test_a_second_grant_to_the_holder_extends_the_lease(database: Database) -> None:
    with database.writing() as session:
        first = leases.grant(session, "a", "ada", for_s=HOUR_S, strategy="first", at=NOON)
        later = NOON + timedelta(minutes=30)
        again = leases.grant(session, "a", "ada", for_s=HOUR_S, strategy="random", at=later)
        assert (again.id, again.strategy, again.granted_at) == (first.id, "first", NOON)
        assert again.expires_at == NOON + timedelta(minutes=90)
        shorter = leases.extend(session, "a", "ada", 60.0, at=later)
        assert shorter.expires_at == NOON + timedelta(minutes=90)


def test_a_lease_ends_at_its_expiry(database: Database) -> None:
    with database.writing() as session:
        leases.grant(session, "a", "ada", for_s=HOUR_S, at=NOON)
        just_before = NOON + timedelta(minutes=59, seconds=59)
        assert len(leases.active(session, just_before)) == 1
    much_later = NOON + timedelta(days=2)
    with database.writing() as session:
        assert leases.active(session, NOON + timedelta(hours=1)) == []
    with database.writing() as session:
        second = leases.grant(session, "a", "bob", for_s=HOUR_S, at=much_later)
        first = session.scalars(select(Lease).where(Lease.holder == "ada")).one()
        assert (first.ended_at, first.ended_by) == (NOON + timedelta(hours=1), "expiry")
        assert second.ended_at is None


def test_listing_leases_ends_expired_ones(database: Database, assignments: Leases) -> None:
    with database.writing() as session:
        leases.grant(session, "a", "ada", for_s=1.0, at=NOON)
    assert assignments.active() == []
    assert rows(database) == [("a", "ada", "expiry")]


def test_a_reader_study_has_a_lease_for_each_missing_reader(
    database: Database, assignments: Leases, history: LabelHistory
) -> None:
    ReaderStudies(database).set_readers("a", 2, "eve")
    assignments.grant("a", "ada", for_s=HOUR_S)
    assignments.grant("a", "bob", for_s=HOUR_S)
    with pytest.raises(StateError, match=r"needs 2 readers, 0 submitted.* to ada until .*, bob un"):
        assignments.grant("a", "ida", for_s=HOUR_S)
    add_reading(history, "a", "ada", "one")
    assert len(assignments.end_after_submission("a")) == 1
    with pytest.raises(
        StateError, match="needs 2 readers, 1 submitted, and it is leased to bob unt"
    ):
        assignments.grant("a", "ida", for_s=HOUR_S)
    assignments.release("a", "bob")
    with pytest.raises(
        StateError, match="ada contoured it already, and each reader contours an im"
    ):
        assignments.grant("a", "ada", for_s=HOUR_S)
    assignments.grant("a", "ida", for_s=HOUR_S)
    assert rows(database) == [("a", "ada", "label"), ("a", "bob", "release"), ("a", "ida", None)]


def test_a_labelled_case_is_not_leased(assignments: Leases, history: LabelHistory) -> None:
    add_reading(history, "a", "", "one", source="folder")
    with pytest.raises(StateError, match="contoured already by a reader without a name, and it ne"):
        assignments.grant("a", "ada", for_s=HOUR_S)
    history.hide("a", "final")
    assert assignments.grant("a", "ada", for_s=HOUR_S).holder == "ada"


@pytest.mark.parametrize("method", ["extend", "release"])
def test_a_missing_lease_is_an_error_that_names_the_last_one(
    assignments: Leases, method: str
) -> None:
    def call(image_id: str, holder: str) -> None:
        durations = (HOUR_S,) if method == "extend" else ()
        getattr(assignments, method)(image_id, holder, *durations)

    with pytest.raises(DatastoreError, match="a: ada has no lease of this image; there never was"):
        call("a", "ada")
    assignments.grant("a", "ada", for_s=HOUR_S)
    with pytest.raises(DatastoreError, match="a: a client without a name has no lease"):
        call("a", "")
    assignments.release("a", "ada")
    with pytest.raises(DatastoreError, match="the last one ended by release at 20"):
        call("a", "ada")


def test_activity_extends_a_lease_and_does_not_grant_one(
    database: Database, assignments: Leases
) -> None:
    assert assignments.extend_if_held("a", "ada", HOUR_S) is False
    assert rows(database) == []
    before = assignments.grant("a", "ada", for_s=HOUR_S).expires_at
    assert assignments.extend_if_held("a", "bob", 2 * HOUR_S) is False
    assert assignments.extend_if_held("a", "ada", HOUR_S + 30) is True
    assert assignments.active()[0].expires_at == before, (
        "an extension of less than a minute is not stored"
    )
    assert assignments.extend_if_held("a", "ada", 2 * HOUR_S) is True
    gained = assignments.active()[0].expires_at - before
    assert timedelta(hours=1) <= gained < timedelta(hours=1, minutes=1)


@pytest.mark.parametrize(
    ("readers", "holders", "submitters", "remaining"),
    [
        (1, ["ada"], ["ada"], []),
        (1, ["ada"], ["bob"], []),
        (2, ["ada", "bob"], ["ada"], ["bob"]),
        (2, ["ada", "bob"], ["ida"], ["ada", "bob"]),
        (2, ["ada"], ["bob"], ["ada"]),
        (2, ["ada"], ["bob", "ida"], []),
        (2, ["ada", "bob"], ["ida", "eve"], ["ada", "bob"]),
    ],
)
def test_a_label_ends_the_leases_that_it_completes(
    database: Database,
    readers: int,
    holders: list[str],
    submitters: list[str],
    remaining: list[str],
) -> None:
    history, assignments = LabelHistory(database, database.path.parent), Leases(database)
    ReaderStudies(database).set_readers("a", readers, "eve")
    assignments.grant("b", holders[0], for_s=HOUR_S)
    for holder in holders:
        assignments.grant("a", holder, for_s=HOUR_S)
    for reader in submitters:
        add_reading(history, "a", reader, reader)
        assignments.end_after_submission("a")
    assert [x.holder for x in assignments.active() if x.image_id == "a"] == remaining
    assert assignments.held_by(holders[0])[0].image_id == "b"
    assert {ended for *_, ended in rows(database)} <= {None, "label"}


def test_a_label_submitted_before_the_lease_does_not_end_it(
    assignments: Leases, history: LabelHistory
) -> None:
    add_reading(history, "a", "ada", "one")
    ReaderStudies(assignments.database).set_readers("a", 2, "eve")
    assignments.grant("a", "bob", for_s=HOUR_S)
    ReaderStudies(assignments.database).set_readers("a", 1, "eve")
    assert assignments.end_after_submission("a") == []
    assert assignments.end_after_submission("never labelled") == []
    assert [x.holder for x in assignments.active()] == ["bob"]


def start_process(code: str, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(APP_DIR)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def test_eight_processes_lease_two_hundred_cases_once_each(database: Database) -> None:
    path = str(database.path)
    readers = [
        start_process(LEASE_ALL_CASES, path, f"reader_{n}", ",".join(IMAGES)) for n in range(8)
    ]
    # Each waits after its first lease, so that all take part however busy the machine is.
    for message in ("ready\n", "leased\n"):
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == message
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.write("go\n")
            reader.stdin.flush()
    for reader in readers:
        reader.communicate(timeout=LIMIT_S)
    assert [reader.returncode for reader in readers] == [0] * 8
    with database.reading() as session:
        granted = list(session.scalars(select(Lease)))
    assert sorted(lease.image_id for lease in granted) == IMAGES
    assert len({lease.holder for lease in granted}) == 8


def test_the_case_of_a_killed_process_can_be_leased_again(
    database: Database, assignments: Leases
) -> None:
    killed = start_process(LEASE_AND_DIE, str(database.path), "0.5")
    killed.communicate(timeout=LIMIT_S)
    assert killed.returncode == -signal.SIGKILL
    assert [image for image, *_ in rows(database)] == ["kept"]
    assert assignments.grant("undone", "bob", for_s=HOUR_S).holder == "bob"
    wait_until(lambda: not assignments.held_by("dead"), "the lease expires")
    assert assignments.grant("kept", "bob", for_s=HOUR_S).holder == "bob"
    with database.reading() as session:
        dead = session.scalars(select(Lease).where(Lease.holder == "dead")).one()
    assert (dead.ended_by, dead.ended_at) == ("expiry", dead.expires_at)


def test_a_lease_is_kept_across_a_restart(database: Database, tmp_path: Path) -> None:
    Leases(database).grant("a", "ada", for_s=HOUR_S)
    later = Database(database.path)
    assert [x.holder for x in Leases(later).active()] == ["ada"]
    later.close()


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
def test_an_image_is_leased_to_permitted_readers_only(
    holder: str, image_id: str, *, expected: bool
) -> None:
    state = AssignmentState(
        wanted={"study": 2, "full": 2},
        submitted={"done": {"bob"}, "study": {"ada"}, "full": {"ada"}},
        holding={"held": {"bob"}, "full": {"ida"}},
    )
    assert may_lease(holder, image_id, state) is expected


def test_a_study_is_finished_when_all_its_readers_have_submitted() -> None:
    submitted = {"a": {"ada"}, "b": {"ada"}, "c": {"ada", "bob"}}
    state = AssignmentState(wanted={"b": 2, "c": 2}, submitted=submitted)
    assert [state.is_finished(image) for image in "abcd"] == [True, False, True, False]


def test_the_assignment_state_predicts_whether_a_lease_is_granted(
    database: Database, history: LabelHistory
) -> None:
    ReaderStudies(database).set_readers("study", 2, "eve")
    add_reading(history, "study", "ada", "one")
    add_reading(history, "done", "ada", "one")
    at = now()
    with database.writing() as session:
        leases.grant(session, "late", "bob", for_s=60.0, at=at - timedelta(hours=1))
        leases.grant(session, "held", "bob", for_s=60.0, at=at)
        state = assignment_state(session, at)
        assert state.wanted == {"study": 2}
        assert state.submitted == {"study": {"ada"}, "done": {"ada"}}
        assert state.holding == {"held": {"bob"}}
        for image in ("study", "done", "held", "late", "other"):
            for holder in ("ada", "bob"):
                may = may_lease(holder, image, state)
                with session.begin_nested() as attempt:
                    try:
                        leases.grant(session, image, holder, for_s=60.0, at=at)
                        was_granted = True
                    except StateError:
                        was_granted = False
                    attempt.rollback()
                assert was_granted is may, (image, holder)


def test_only_images_without_a_reading_are_offered() -> None:
    images = [f"case_{n:04d}" for n in range(2000)]
    state = AssignmentState(submitted={image: {"ada"} for image in images[::2]})
    assert sum(may_lease("bob", image, state) for image in images) == 1000
