import pytest

from lib.assignment.reader_studies import (
    ReaderStudies,
    due_readings,
    may_be_leased,
    may_be_seen,
    newest_consensus,
    readings_by_reader,
    submitted,
)
from lib.errors import ConfigError
from lib.labels.history import LabelHistory, Provenance
from lib.storage.database import Database
from lib.storage.tables import LabelVersion
from tests.readings import add_reading


def numbers(history: LabelHistory, image_id: str = "a") -> dict[str, int]:
    """Return reader -> version number of the reading, oldest first."""
    versions = readings_by_reader(history.history(image_id, "final"))
    return {reader: version.number for reader, version in versions.items()}


def add_consensus(history: LabelHistory, readings: list[int]) -> None:
    info = {"consensus": {"of": readings}}
    add_reading(history, "a", "", f"of {readings}", source="consensus", info=info)


def readings(history: LabelHistory) -> list[LabelVersion]:
    return list(readings_by_reader(history.history("a", "final")).values())


def numbers_due(history: LabelHistory) -> list[int]:
    return [version.number for version in due_readings(history.history("a", "final"))]


@pytest.mark.parametrize(
    ("wanted", "have_submitted", "holding", "requester", "expected"),
    [
        (1, "", "", "ada", True),
        (1, "", "bob", "ada", False),
        (1, "", "ada", "ada", True),
        (1, "bob", "", "ada", False),
        (1, "ada", "", "ada", False),
        (2, "", "bob", "ada", True),
        (2, "", "bob eve", "ada", False),
        (2, "bob", "", "ada", True),
        (2, "ada", "", "ada", False),
        (2, "bob", "eve", "ada", False),
        (2, "bob", "ada", "ada", True),
        (2, "bob eve", "", "ada", False),
        (3, "bob", "eve", "ada", True),
        (3, "ada", "eve", "ada", False),
        (1, "bob eve", "", "ada", False),
    ],
)
def test_an_image_is_leased_to_the_number_of_readers_that_it_needs(
    wanted: int, have_submitted: str, holding: str, requester: str, *, expected: bool
) -> None:
    may = may_be_leased(
        wanted=wanted,
        submitted=have_submitted.split(),
        holding=holding.split(),
        requester=requester,
    )
    assert may is expected


@pytest.mark.parametrize(
    ("wanted", "have_submitted", "requester", "is_reviewer", "expected"),
    [
        (1, "ada", "bob", False, True),
        (1, "ada", None, False, True),
        (2, "ada", "bob", False, False),
        (2, "ada", "bob", True, True),
        (2, "ada", "ada", False, True),
        (2, "ada", None, True, False),
        (2, "", "bob", False, True),
        (2, "ada eve", "bob", False, True),
        (2, "ada eve", None, False, True),
        (3, "ada eve", "bob", False, False),
        (3, "ada eve", "eve", False, True),
    ],
)
def test_a_label_is_visible_to_readers_who_need_not_contour_the_image(
    wanted: int, have_submitted: str, requester: str | None, *, is_reviewer: bool, expected: bool
) -> None:
    submitted_by = have_submitted.split()
    shown = may_be_seen(
        wanted=wanted, submitted=submitted_by, requester=requester, is_reviewer=is_reviewer
    )
    assert shown is expected


def test_an_image_has_one_reader_by_default(database: Database) -> None:
    studies = ReaderStudies(database)
    assert studies.readers_of("a") == 1
    studies.set_readers("b", 2, "eve")
    studies.set_readers("a", 3, "eve")
    assert (studies.readers_of("a"), studies.readers_of("c")) == (3, 1)
    assert [(s.image_id, s.readers, s.by) for s in studies.all()] == [
        ("a", 3, "eve"),
        ("b", 2, "eve"),
    ]


def test_a_study_keeps_its_author_until_it_is_changed_and_can_be_ended(database: Database) -> None:
    studies = ReaderStudies(database)
    first = studies.set_readers("a", 2, "eve")
    again = studies.set_readers("a", 2, "mallory")
    assert (again.by, again.since) == ("eve", first.since)
    assert studies.set_readers("a", 3, "ida").by == "ida"
    studies.set_readers("a", 1, "ida")
    assert studies.all() == []
    assert studies.readers_of("a") == 1


@pytest.mark.parametrize("readers", [0, -1, 21])
def test_an_invalid_number_of_readers_is_refused(database: Database, readers: int) -> None:
    with pytest.raises(ConfigError, match=f"a: {readers} readers requested; 1 to 20 expected"):
        ReaderStudies(database).set_readers("a", readers, "eve")
    assert ReaderStudies(database).all() == []


def test_each_reader_counts_once_with_the_newest_label(history: LabelHistory) -> None:
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    add_reading(history, "a", "ada", "three")
    add_reading(history, "a", "", "four", client="slicer")
    add_reading(history, "a", "", "five", source="folder")
    assert numbers(history) == {"bob": 2, "ada": 3, "slicer": 4, "": 5}


def test_labels_of_the_model_and_consensus_labels_are_not_readings(history: LabelHistory) -> None:
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "model's", source="infer")
    add_reading(history, "a", "", "both", source="consensus", info={"consensus": {"of": [1]}})
    history.restore("a", "final", 2, "eve")
    history.restore("a", "final", 3, "eve")
    assert numbers(history) == {"ada": 1}


def test_a_restored_reading_belongs_to_its_original_author(history: LabelHistory) -> None:
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    history.hide("a", "final")
    assert numbers(history) == {}
    history.restore("a", "final", 1, "eve")
    history.restore("a", "final", 3, "eve")
    assert numbers(history) == {"ada": 4}


def test_a_restored_label_of_unknown_origin_belongs_to_the_person_who_restored_it(
    history: LabelHistory,
) -> None:
    add_reading(history, "a", "ada", "another")
    add_reading(history, "a", "eve", "one", source="restore", info={"restored_number": 1})
    add_reading(history, "a", "ida", "two", source="restore", info={"restored_number": 3})
    assert numbers(history) == {"ada": 1, "eve": 2, "ida": 3}


def test_readers_of_all_images_equal_those_of_each_image(
    database: Database, history: LabelHistory
) -> None:
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "", "two", client="slicer")
    add_reading(history, "b", "", "model's", source="infer")
    add_reading(history, "c", "ada", "one")
    history.hide("c", "final")
    history.restore("c", "final", 1, "eve")
    add_reading(history, "d", "ada", "one")
    history.hide("d", "final")
    history.add("e", "original", history.path(history.history("a", "final")[0].digest), _draft())
    with database.reading() as session:
        readers = submitted(session)
    assert readers == {"a": {"ada", "slicer"}, "c": {"ada"}}
    assert all(set(numbers(history, image)) == readers.get(image, set()) for image in "abcde")


def test_readings_are_the_newest_of_each_reader_oldest_first(history: LabelHistory) -> None:
    assert readings(history) == []
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    add_reading(history, "a", "ada", "three")
    add_consensus(history, [2, 3])
    assert [(v.author, v.number) for v in readings(history)] == [("bob", 2), ("ada", 3)]


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


def test_no_consensus_is_due_after_a_reviewer_restored_a_reading(history: LabelHistory) -> None:
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    add_consensus(history, [1, 2])
    history.restore("a", "final", 1, "eve")
    assert numbers_due(history) == []
    newest = history.newest("a", "final")
    assert newest is not None
    assert (newest.source, newest.author) == ("restore", "eve")


def test_after_a_removal_only_new_readings_count(history: LabelHistory) -> None:
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    add_consensus(history, [1, 2])
    history.hide("a", "final")
    assert numbers_due(history) == []
    assert newest_consensus(history.history("a", "final")) is None
    add_reading(history, "a", "ada", "one")
    add_reading(history, "a", "bob", "two")
    assert numbers_due(history) == [4, 5]


def _draft() -> Provenance:
    return Provenance(source="client", author="ada")
