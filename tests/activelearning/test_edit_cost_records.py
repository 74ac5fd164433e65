from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from lib.activelearning.edit_cost_records import EditCostRecords
from lib.evaluation.edit_cost import EditCosts, edit_cost
from lib.imaging.geometry import Grid
from lib.storage.database import FILE, Database
from lib.storage.tables import LabelVersion, now

START = now() - timedelta(days=1)


@pytest.fixture
def records(database: Database) -> EditCostRecords:
    return EditCostRecords(database)


def submit(
    database: Database,
    image_id: str,
    *,
    minute: int = 0,
    tag: str = "final",
    source: str = "client",
    model_version: str | None = "model",
    is_hidden: bool = False,
    number: int = 1,
) -> LabelVersion:
    label = LabelVersion(
        image_id=image_id,
        tag=tag,
        number=number,
        digest=f"{minute:064}",
        source=source,
        model_version=model_version,
        organs=[],
        info={},
        submitted_at=START + timedelta(minutes=minute),
        hidden_at=now() if is_hidden else None,
    )
    with database.writing() as session:
        session.add(label)
    return label


def costs() -> EditCosts:
    """Return the costs of a square of 4 x 4 pixels that was moved by one: 4 + 2 new ones of 1 mm."""
    prediction = np.zeros((12, 12, 12), np.uint8)
    prediction[2:6, 2:6, 3] = 1
    grid = Grid.from_affine((12, 12, 12), np.eye(4))
    return edit_cost(prediction, np.roll(prediction, 1, 0), {"Brainstem": 1}, grid=grid)


def images(labels: list[LabelVersion]) -> list[str]:
    return [label.image_id for label in labels]


def test_what_was_measured_is_kept_once(database: Database, records: EditCostRecords) -> None:
    label = submit(database, "a")
    assert records.keep(label, costs(), was_trained_on=True)
    assert not records.keep(label, None, was_trained_on=False, trouble="too late")
    (edited,) = records.curve()
    assert edited.label.image_id == "a"
    row = edited.cost
    assert (row.model_version, row.was_trained_on, row.trouble) == ("model", True, None)
    assert (row.mean_dsc, row.added_path_mm, row.changed_voxels) == (0.75, 6, 8)
    assert row.found == costs().as_dict()


def test_what_failed_is_kept_and_not_due_again(
    database: Database, records: EditCostRecords
) -> None:
    label = submit(database, "a")
    assert records.keep(label, None, was_trained_on=False, trouble="the scan is gone")
    (edited,) = records.latest(5)
    assert (edited.cost.found, edited.cost.mean_dsc) == ({}, None)
    assert edited.cost.trouble == "the scan is gone"
    assert records.due(5) == []


def test_visible_final_labels_of_a_known_model_are_due_the_newest_first(
    database: Database, records: EditCostRecords
) -> None:
    submit(database, "old", minute=1)
    submit(database, "by_hand", minute=2, source="folder")
    measured = submit(database, "measured", minute=3)
    submit(database, "new", minute=4)
    submit(database, "draft", minute=5, tag="original")
    submit(database, "inferred", minute=6, source="infer")
    submit(database, "restored", minute=7, source="restore")
    submit(database, "hidden", minute=8, is_hidden=True)
    submit(database, "no_model", minute=9, model_version=None)
    submit(database, "empty_name", minute=10, model_version="")
    records.keep(measured, costs(), was_trained_on=False)
    assert images(records.due(10)) == ["new", "by_hand", "old"]
    assert images(records.due(2)) == ["new", "by_hand"]
    assert records.due(0) == []


def test_the_curve_runs_in_the_order_of_submission(
    database: Database, records: EditCostRecords
) -> None:
    later, hidden, first = (
        submit(database, "later", minute=9),
        submit(database, "hidden", minute=5, is_hidden=True),
        submit(database, "first", minute=1),
    )
    for label in (later, hidden, first):
        records.keep(label, costs(), was_trained_on=False)
    assert [edited.label.image_id for edited in records.curve()] == ["first", "later"]
    assert [edited.label.image_id for edited in records.latest(1)] == ["later"]
    assert [edited.label.image_id for edited in records.latest(9)] == ["later", "first"]


def test_rows_of_another_database_find_their_label_by_what_it_is(
    tmp_path: Path, database: Database, records: EditCostRecords
) -> None:
    there = Database(tmp_path / "there" / FILE)
    for image_id, minute in (("lost", 1), ("both", 2), ("only_there", 3)):
        label = submit(there, image_id, minute=minute)
        EditCostRecords(there).keep(label, costs(), was_trained_on=True)
    # Their ids are others here, and one label is not here at all.
    submit(database, "only_there", minute=3)
    records.keep(submit(database, "both", minute=2), costs(), was_trained_on=False)
    submit(database, "lost", minute=7)
    assert records.merge(there) == 1
    assert records.merge(there) == 0
    found = {e.label.image_id: e.cost for e in records.curve()}
    assert {image: row.was_trained_on for image, row in found.items()} == {
        "both": False,
        "only_there": True,
    }
    assert found["only_there"].added_path_mm == 6
    there.close()
