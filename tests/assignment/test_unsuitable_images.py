import pytest

from lib.assignment.leases import Leases
from lib.assignment.unsuitable_images import UnsuitableImages, unsuitable_images
from lib.errors import ConfigError, DatastoreError, StateError
from lib.storage.database import Database


@pytest.fixture
def images(database: Database) -> UnsuitableImages:
    return UnsuitableImages(database)


def test_marking_and_undoing_are_kept_with_user_and_time(
    images: UnsuitableImages, database: Database
) -> None:
    images.mark("a", "  no contrast, arms in the field ", "ada")
    images.mark("b", "abdomen", "bob")
    with database.reading() as session:
        assert set(unsuitable_images(session)) == {"a", "b"}
    images.undo("a", "root")
    assert [row.image_id for row in images.all()] == ["b"]
    first, second = images.all(with_undone=True)
    assert (first.reason, first.by, first.undone_by) == (
        "no contrast, arms in the field",
        "ada",
        "root",
    )
    assert first.undone_at is not None
    assert first.undone_at >= first.marked_at
    assert (second.undone_by, second.undone_at) == (None, None)
    images.mark("a", "again", "ada")
    assert [row.reason for row in images.all()] == ["abdomen", "again"]


def test_the_leases_of_an_unsuitable_image_end(
    images: UnsuitableImages, database: Database
) -> None:
    leases = Leases(database)
    leases.grant("a", "bob", for_s=3600.0)
    other = leases.grant("b", "bob", for_s=3600.0)
    images.mark("a", "abdomen", "ada")
    assert [lease.id for lease in leases.active()] == [other.id]


def test_a_mark_needs_a_reason_and_is_made_once(images: UnsuitableImages) -> None:
    for reason in ("", " \n", "x" * 501):
        with pytest.raises(ConfigError, match="1 to 500 expected"):
            images.mark("a", reason, "ada")
    images.mark("a", "x" * 500, "ada")
    with pytest.raises(StateError, match="a: ada marked it as unsuitable already: x"):
        images.mark("a", "abdomen", "bob")
    with pytest.raises(DatastoreError, match="b: not marked as unsuitable"):
        images.undo("b", "root")
    assert len(images.all(with_undone=True)) == 1
