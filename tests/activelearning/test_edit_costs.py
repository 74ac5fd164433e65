"""Edit costs: rows of the database, and the curve over submissions."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.activelearning.edit_costs import (
    EditCostRecords,
    SubmissionCost,
    mann_whitney_p,
    summary,
    verdict,
    was_trained_on,
)
from lib.activelearning.image_scores import measure_edit_cost
from lib.errors import GeometryError
from lib.evaluation.edit_cost import EditCosts, edit_cost
from lib.imaging.geometry import Grid
from lib.imaging.scans import read_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.inference.single_pass import contour
from lib.models.model_cards import candidate_from_files
from lib.models.model_history import Candidate, ModelHistory
from lib.models.registry import Model, Registry, load_model, save_model
from lib.networks.build import build_network
from lib.storage.database import FILE, Database
from lib.storage.tables import LabelVersion, now
from lib.training.cases import Case
from tests.activelearning.edited import curve, edited, label_of, organ
from tests.tiny import TINY

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


def test_a_second_edit_cost_of_a_label_is_not_stored(
    database: Database, records: EditCostRecords
) -> None:
    label = submit(database, "a")
    assert records.add(label, costs(), was_trained_on=True)
    assert not records.add(label, None, was_trained_on=False, error="too late")
    (edited,) = records.curve()
    assert edited.label.image_id == "a"
    row = edited.cost
    assert (row.model_version, row.was_trained_on, row.error) == ("model", True, None)
    assert (row.mean_dsc, row.added_path_mm, row.changed_voxels) == (0.75, 6, 8)
    assert row.values == costs().as_dict()


def test_a_failed_measurement_is_stored_and_not_repeated(
    database: Database, records: EditCostRecords
) -> None:
    label = submit(database, "a")
    assert records.add(label, None, was_trained_on=False, error="the scan is gone")
    (edited,) = records.curve()
    assert (edited.cost.values, edited.cost.mean_dsc) == ({}, None)
    assert edited.cost.error == "the scan is gone"
    assert records.unmeasured(5) == []


def test_visible_final_labels_with_a_recorded_model_are_measured_newest_first(
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
    records.add(measured, costs(), was_trained_on=False)
    assert images(records.unmeasured(10)) == ["new", "by_hand", "old"]
    assert images(records.unmeasured(2)) == ["new", "by_hand"]
    assert records.unmeasured(0) == []


def test_the_curve_is_in_the_order_of_submission(
    database: Database, records: EditCostRecords
) -> None:
    later, hidden, first = (
        submit(database, "later", minute=9),
        submit(database, "hidden", minute=5, is_hidden=True),
        submit(database, "first", minute=1),
    )
    for label in (later, hidden, first):
        records.add(label, costs(), was_trained_on=False)
    assert [edited.label.image_id for edited in records.curve()] == ["first", "later"]


def test_rows_of_another_database_are_matched_by_the_labels_content(
    tmp_path: Path, database: Database, records: EditCostRecords
) -> None:
    other = Database(tmp_path / "there" / FILE)
    for image_id, minute in (("lost", 1), ("both", 2), ("only_there", 3)):
        label = submit(other, image_id, minute=minute)
        EditCostRecords(other).add(label, costs(), was_trained_on=True)
    # The labels have other ids in this database, and one of them does not exist in it.
    submit(database, "only_there", minute=3)
    records.add(submit(database, "both", minute=2), costs(), was_trained_on=False)
    submit(database, "lost", minute=7)
    assert records.merge(other) == 1
    assert records.merge(other) == 0
    result = {e.label.image_id: e.cost for e in records.curve()}
    assert {image: row.was_trained_on for image, row in result.items()} == {
        "both": False,
        "only_there": True,
    }
    assert result["only_there"].added_path_mm == 6
    other.close()


@pytest.fixture
def models(tmp_path: Path) -> ModelHistory:
    return ModelHistory(Database(tmp_path / "workflow.sqlite"))


FIVE = (300, 310, 320, 330, 340)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        pytest.param([], "too few submissions to say: 0 of 10", id="none"),
        pytest.param(curve(300, 310), "too few submissions to say: 2 of 10", id="two"),
        pytest.param(
            curve(*FIVE, 350, 360),
            "the last 5 cases needed 340 mm of new contour per case (median); too few submissions to compare: "
            "7 of 10",
            id="seven",
        ),
        pytest.param(
            curve(500, 510, 540, 520, 530, *FIVE),
            "the last 5 cases needed 320 mm of new contour per case (median), 38 % less than the 5 before",
            id="less",
        ),
        pytest.param(
            curve(9000, *FIVE, 400, 410, 420, 430, 440),
            "the last 5 cases needed 420 mm of new contour per case (median), 31 % more than the 5 before",
            id="more, and what is older than ten does not count",
        ),
        pytest.param(
            curve(*FIVE, 305, 315, 325, 335, 250),
            "the last 5 cases needed 315 mm of new contour per case (median), 320 mm in the 5 before: "
            "no change beyond chance",
            id="alike",
        ),
        pytest.param(
            curve(0, 0, 0, 0, 0, *FIVE),
            "the last 5 cases needed 320 mm of new contour per case (median), 320 mm more than the 5 before",
            id="more than nothing",
        ),
        pytest.param(
            curve(*[0] * 10),
            "the last 5 cases needed 0 mm of new contour per case (median), 0 mm in the 5 before: no change "
            "beyond chance",
            id="accepted, always",
        ),
        pytest.param(
            [
                *(
                    edited({"Brainstem": organ(v), "Larynx": organ(v)}, hour=h)
                    for h, v in enumerate(FIVE)
                ),
                *curve(110, 120, 130, 140, 150),
            ],
            "the last 5 cases needed 130 mm of new contour per organ (median; the cases have 1 to 2 organs), "
            "59 % less than the 5 before",
            id="fewer organs are not less work per organ",
        ),
    ],
)
def test_the_verdict_is_a_sentence_that_an_annotator_understands(
    rows: Sequence[SubmissionCost], sentence: str
) -> None:
    assert verdict(rows) == sentence


def test_the_test_separates_a_change_from_chance() -> None:
    # Of the 252 ways to divide ten values, two are as far apart as 1 to 5 and 6 to 10.
    assert mann_whitney_p([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert mann_whitney_p([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]) == pytest.approx(2 / 252)
    assert mann_whitney_p([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == 1
    assert mann_whitney_p([7] * 5, [7] * 5) == 1


def test_each_submission_is_listed_with_the_median_of_the_last_five() -> None:
    result = summary(curve(10, 50, 20, 40, 30, 60))
    first, fifth, sixth = (result["submissions"][i] for i in (0, 4, 5))
    assert first == {
        "time": "2024-05-01T08:00:00+00:00",
        "image": "case_0",
        "author": "ada",
        "model_version": "m",
        "was_trained_on": False,
        "organs": 1,
        "left_out": [],
        "mean_dsc": 0.9,
        "added_path_mm": 10,
        "changed_voxels": 10,
        "trouble": None,
        "counts": True,
        "running_median": None,
    }
    assert fifth["running_median"] == {"mean_dsc": 0.9, "added_path_mm": 30, "changed_voxels": 30}
    # Of 50, 20, 40, 30, 60.
    assert sixth["running_median"]["added_path_mm"] == 40
    assert (result["counted"], result["failed"]) == (6, 0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_failed_empty_and_trained_on_submissions_do_not_count() -> None:
    rows = [
        *curve(10, 20, 30, 40),
        edited(1, hour=10, was_trained_on=True),
        edited(None, hour=11),
        edited({"Larynx": organ(0, is_left_out=True, changed_voxels=99)}, hour=12),
        edited(50, hour=13),
    ]
    result = summary(rows)
    assert [s["counts"] for s in result["submissions"]] == [True] * 4 + [False] * 3 + [True]
    medians = [s["running_median"] for s in result["submissions"]]
    assert medians[:-1] == [None] * 7
    assert medians[-1]["added_path_mm"] == 30
    assert (result["counted"], result["failed"]) == (5, 1)
    assert result["submissions"][5]["trouble"] == "the scan is gone"
    assert result["submissions"][6]["left_out"] == ["Larynx"]
    assert result["submissions"][6]["mean_dsc"] is None
    assert list(result["organs"]) == ["Brainstem"]


def test_of_one_image_the_last_submission_counts_for_each_author_and_model() -> None:
    rows = [
        edited(500, hour=0, image_id="a"),
        edited(300, hour=1, image_id="b"),
        edited(100, hour=2, image_id="a"),
        edited(200, hour=3, image_id="a", author="bob"),
        edited(400, hour=4, image_id="a", model_version="newer"),
    ]
    result = summary(rows)
    assert [s["counts"] for s in result["submissions"]] == [False, True, True, True, True]


def test_organ_medians_are_of_the_last_ten_submissions_with_the_number_of_unchanged_ones() -> None:
    old = edited({"Larynx": organ(999)}, hour=0)
    rows = [
        edited(
            {
                "Brainstem": organ(hour, dsc=hour / 10),
                "Larynx": organ(5 if hour == 10 else 0),
                "Esophagus": organ(0, is_left_out=True, changed_voxels=7),
                "SpinalCord": organ(70, dsc=0.0, is_missed=True),
            },
            hour=hour,
        )
        for hour in range(1, 11)
    ]
    result = summary([old, *rows])
    assert list(result["organs"]) == ["Brainstem", "Larynx", "SpinalCord"]
    assert result["organs"]["Brainstem"] == {
        "n": 10,
        "unchanged": 0,
        "missed": 0,
        "dsc": pytest.approx(0.55),
        "added_path_mm": 5.5,
        "changed_voxels": 5.5,
        "changed_ml": pytest.approx(0.055),
    }
    assert result["organs"]["Larynx"]["unchanged"] == 9
    assert result["organs"]["SpinalCord"]["missed"] == 10
    # 9 of 30 contours.
    assert result["unchanged_share"] == 0.3


def test_a_summary_without_submissions_says_that_there_are_too_few() -> None:
    result = summary([])
    assert (result["submissions"], result["organs"], result["unchanged_share"]) == ([], {}, None)
    assert result["verdict"] == "too few submissions to say: 0 of 10"


def learned(image_id: str) -> list[dict[str, object]]:
    return [{"image_id": image_id, "version": 1, "digest": "0" * 64}]


@pytest.mark.parametrize(
    ("image_id", "model_version", "is_known"),
    [
        ("of_child", "child", True),
        ("of_parent", "child", True),
        ("of_starter", "child", True),
        ("of_child", "parent", False),
        ("new", "child", False),
        ("of_nobody", "orphan", True),
        ("new", "orphan", False),
        ("of_nobody", "unrecorded", True),
        ("of_nobody", "child", False),
        ("of_orphan", "orphan", True),
        ("new", None, False),
        ("of_ring", "ring_a", True),
        ("new", "ring_a", False),
    ],
)
def test_images_that_a_model_or_its_parents_learned_from_count_as_trained_on(
    models: ModelHistory, image_id: str, model_version: str | None, *, is_known: bool
) -> None:
    for version, parent in (
        ("starter", None),
        ("parent", "starter"),
        ("child", "parent"),
        ("orphan", "gone"),
        ("ring_a", "ring_b"),
        ("ring_b", "ring_a"),
    ):
        name = "ring" if version == "ring_b" else version
        candidate = Candidate(
            version=version, recipe="tiny", parent=parent, labels=learned(f"of_{name}")
        )
        models.record(candidate)
    label = label_of(image_id, model_version=model_version)
    assert was_trained_on(label, models, unrecorded={"of_nobody"}) == is_known


def test_the_cases_on_a_starters_card_count_as_trained_on(
    tmp_path: Path, models: ModelHistory
) -> None:
    card = {"training": {"cases": ["pt_1", "pt_2"]}}
    version = save_model(tmp_path, build_network(TINY).state_dict(), TINY, card)
    registry = Registry(tmp_path / "models", starter=tmp_path)
    models.record(candidate_from_files(registry, version))
    for image_id, is_known in (("pt_2", True), ("pt_3", False)):
        assert was_trained_on(label_of(image_id, model_version=version), models) == is_known


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with random weights that still predicts several organs."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    weights = build_network(TINY).state_dict()
    weights["head.weight"] = 100 * weights["head.weight"]
    weights["head.bias"] = 0 * weights["head.bias"]
    version = save_model(folder, weights, TINY, {})
    return load_model(folder / f"{version}.safetensors")


def test_a_submission_is_compared_with_the_models_contours(
    cases: list[Case], model: Model, tmp_path: Path
) -> None:
    image = cases[0].image
    predicted = contour(read_ct(image), model).label
    predicted_organs = set(predicted.volumes_ml())
    assert "Bone_Mandible" in predicted_organs
    assert len(predicted_organs) > 2
    # The prediction is accepted unchanged; this server has other label values, and lacks one organ.
    server_labels = {
        name: n + 20 for name, n in predicted.labels.items() if name != "Bone_Mandible"
    }
    accepted = np.zeros_like(predicted.array)
    for name, value in server_labels.items():
        accepted[predicted.array == predicted.labels[name]] = value
    path = tmp_path / "submitted.nii.gz"
    write_label(path, LabelVolume(accepted, predicted.grid, server_labels))
    result = measure_edit_cost(image, path, model, image_id="case_0", labels=server_labels)
    assert (result.mean_dsc, result.added_path_mm, result.changed_voxels) == (1, 0, 0)
    assert set(result.organs) == predicted_organs - {"Bone_Mandible"}
    # Moved by one voxel: the cost is that between the two volumes.
    moved = np.roll(predicted.array, 1, 0)
    write_label(path, LabelVolume(moved, predicted.grid, predicted.labels))
    result = measure_edit_cost(image, path, model, image_id="case_0", labels=predicted.labels)
    assert result == edit_cost(predicted.array, moved, predicted.labels, grid=predicted.grid)
    assert result.changed_voxels


def test_a_label_on_another_grid_is_not_measured(
    cases: list[Case], model: Model, tmp_path: Path
) -> None:
    grid = read_ct(cases[0].image).grid
    path = tmp_path / "small.nii.gz"
    small = np.zeros((10, 10, 10), np.uint8)
    write_label(path, LabelVolume(small, grid.from_affine((10, 10, 10), grid.affine_ras), {}))
    with pytest.raises(GeometryError, match="case_0: the label lies on 10 x 10 x 10"):
        measure_edit_cost(
            cases[0].image, path, model, image_id="case_0", labels=model.recipe.labels
        )
