from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.activelearning.case_assigner import MOST_HELD, Annotator, CaseAssigner, NextCase
from lib.activelearning.pool import Choice, Pool, ScoreKind
from lib.activelearning.scores import ScoreCache, ScoreKey, ScoreRecords
from lib.activelearning.scoring_jobs import Studies
from lib.activelearning.selection.catalogue import METHODS
from lib.assignment.leases import Leases
from lib.assignment.unsuitable_images import UnsuitableImages
from lib.errors import DatastoreError
from lib.labels.history import LabelHistory, Provenance
from lib.recipes.schema import OPENKBP
from lib.storage.database import Database
from lib.storage.tables import Lease, Score

ANN, BOB = Annotator(holder="ann", seed=1), Annotator(holder="bob", seed=1)


class Clinic:
    """A database, images that exist by name only, and a model that is only a name."""

    def __init__(self, folder: Path, images: int = 6) -> None:
        self.folder = folder
        self.database = Database(folder / "workflow.sqlite")
        self.scores = ScoreRecords(self.database)
        self.labels = LabelHistory(self.database, folder)
        self.images = [f"pt_{n:04d}" for n in range(images)]
        self.served: str | None = "m1"
        self.leases = Leases(self.database)
        self.case_assigner = CaseAssigner(
            self.database,
            scores=ScoreCache(self.scores),
            studies=self.studies,
            served=lambda: self.served,
            lease_s=3600.0,
        )

    def studies(self) -> Studies:
        labelled = self.labels.current_digests()
        return Studies(
            unlabelled=tuple(i for i in self.images if i not in labelled), labelled=labelled
        )

    def score(self, image_id: str, entropy: float, version: str = "m1") -> None:
        key = ScoreKey(image_id, version, ScoreKind.PREDICTION)
        self.scores.add(key, prediction(entropy, np.random.default_rng(1)))

    def submit(self, image_id: str, reader: str) -> None:
        file = self.folder / f"{image_id}-{reader}.nii.gz"
        file.write_bytes(f"{image_id} by {reader}".encode())
        self.labels.add(image_id, "final", file, Provenance(source="client", client=reader))
        self.leases.end_after_submission(image_id)


def prediction(entropy: float, rng: np.random.Generator) -> dict[str, Any]:
    organs = {
        name: {
            "entropy": entropy * float(rng.uniform(0.5, 1.5)),
            "shape": {"volume_ml": 20.0, "centroid_mm": [1.0, 2.0, 3.0], "pieces": 1},
        }
        for name in OPENKBP.labels
    }
    features = [float(v) for v in rng.normal(size=128).round(4)]
    return {"entropy": entropy, "foreground": 0.1, "organs": organs, "features": features}


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def test_the_answer_has_the_case_the_reason_and_the_lease(clinic: Clinic) -> None:
    for number, image_id in enumerate(clinic.images):
        clinic.score(image_id, 0.1 * number)
    answer = clinic.case_assigner.assign_next("entropy", ANN)
    assert answer["id"] == clinic.images[-1]
    assert (answer["rank"], answer["of"], answer["score"]) == (1, 6, 0.5)
    assert answer["strategy"] == "entropy"
    assert answer["scored_by"] == answer["model_version"] == "m1"
    assert answer["is_stale"] is False
    assert answer["lease"]["holder"] == "ann"
    assert len(answer["why"]) > 10
    assert answer.keys() <= NextCase.__annotations__.keys()


@pytest.mark.parametrize("strategy", METHODS)
def test_each_case_is_assigned_once(clinic: Clinic, strategy: str) -> None:
    for number, image_id in enumerate(clinic.images[:4]):
        clinic.score(image_id, 0.1 * number)
    assigned = [
        clinic.case_assigner.assign_next(strategy, Annotator(holder=f"client-{n % 3}", seed=n)).get(
            "id", ""
        )
        for n in range(7)
    ]
    assert sorted(assigned[:6]) == clinic.images
    assert assigned[6] == ""


def test_scores_of_an_earlier_model_are_used_and_their_age_is_reported(clinic: Clinic) -> None:
    for number, image_id in enumerate(clinic.images):
        clinic.score(image_id, 0.1 * number)
    clinic.served = "m2"
    with clinic.database.writing() as session:
        for row in session.query(Score):
            row.computed_at -= timedelta(hours=5)
    answer = clinic.case_assigner.assign_next("entropy", ANN)
    assert answer["id"] == clinic.images[-1]
    assert answer["is_stale"] is True
    assert "m1" in answer["note"]
    assert "5 hours" in answer["note"]


def test_without_a_model_coldstart_replaces_a_strategy_that_needs_one(clinic: Clinic) -> None:
    clinic.served = None
    for number, image_id in enumerate(clinic.images):
        clinic.scores.add(
            ScoreKey(image_id, "", ScoreKind.APPEARANCE), {"features": [float(number), 1.0]}
        )
    answer = clinic.case_assigner.assign_next("claspe", ANN)
    assert answer["id"] in clinic.images
    assert answer["strategy"] == "coldstart"
    assert "no" in answer["note"]
    assert "claspe" in answer["note"]


def test_when_all_cases_are_labelled_the_answer_has_no_id(clinic: Clinic) -> None:
    for image_id in clinic.images:
        clinic.submit(image_id, "ann")
    answer = clinic.case_assigner.assign_next("claspe", BOB)
    assert "id" not in answer
    assert answer["why"] == "all cases are labelled"
    assert answer["is_all_labelled"] is True


def test_when_the_other_cases_are_assigned_the_answer_says_so(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, images=1)
    assigned = clinic.case_assigner.assign_next("first", ANN)["id"]
    answer = clinic.case_assigner.assign_next("first", BOB)
    assert "id" not in answer
    assert assigned in answer["why"]
    assert answer["is_all_labelled"] is False


def test_a_case_can_be_assigned_again_when_its_lease_ends(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, images=1)
    clinic.case_assigner.assign_next("first", ANN)
    with clinic.database.writing() as session:
        for lease in session.query(Lease):
            lease.expires_at -= timedelta(hours=2)
    assert clinic.case_assigner.assign_next("first", BOB)["id"] == clinic.images[0]


def test_an_annotator_with_many_cases_gets_the_oldest_again(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, images=MOST_HELD + 2)
    held = [clinic.case_assigner.assign_next("first", ANN)["id"] for _ in range(MOST_HELD)]
    again = clinic.case_assigner.assign_next("first", ANN)
    assert again["id"] == held[0]
    assert str(MOST_HELD) in again["why"]
    assert clinic.case_assigner.assign_next("first", BOB)["id"] == clinic.images[MOST_HELD]
    clinic.submit(held[0], "ann")
    assert clinic.case_assigner.assign_next("first", ANN)["id"] == clinic.images[MOST_HELD + 1]


def test_an_unreadable_scan_is_not_assigned(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, images=2)
    key = ScoreKey(clinic.images[0], "m1", ScoreKind.PREDICTION)
    clinic.scores.add(key, {"is_unreadable": True}, error="not a CT")
    assert clinic.case_assigner.assign_next("first", ANN)["id"] == clinic.images[1]
    answer = clinic.case_assigner.assign_next("first", BOB)
    assert "id" not in answer
    clinic.submit(clinic.images[1], "ann")
    answer = clinic.case_assigner.assign_next("first", BOB)
    assert "not a CT" in answer["why"]


def test_two_readers_get_the_same_case_once_each(clinic: Clinic) -> None:
    ann, bob, eve = (Annotator(holder=h, seed=1, readers=2) for h in ("ann", "bob", "eve"))
    first = clinic.case_assigner.assign_next("random", ann)["id"]
    assert clinic.case_assigner.assign_next("random", bob)["id"] == first
    other = clinic.case_assigner.assign_next("random", eve)["id"]
    assert other != first
    clinic.submit(first, "ann")
    assert clinic.case_assigner.assign_next("random", ann)["id"] == other
    clinic.submit(first, "bob")
    assert clinic.case_assigner.assign_next("random", Annotator(holder="bob", readers=2))[
        "id"
    ] not in (
        first,
        other,
    )


def test_a_second_reading_is_assigned_when_no_other_case_is_left(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, images=2)
    study = clinic.case_assigner.assign_next("first", Annotator(holder="ann", readers=2))["id"]
    clinic.submit(study, "ann")
    other = clinic.case_assigner.assign_next("first", BOB)["id"]
    assert other != study
    clinic.submit(other, "bob")
    assert clinic.case_assigner.assign_next("first", BOB)["id"] == study
    clinic.submit(study, "bob")
    assert clinic.case_assigner.assign_next("first", BOB)["is_all_labelled"] is True


def test_an_unknown_strategy_is_refused_and_the_error_lists_all(clinic: Clinic) -> None:
    with pytest.raises(DatastoreError, match="claspe"):
        clinic.case_assigner.assign_next("best", ANN)


@pytest.mark.parametrize("strategy", ["coldstart", "suggestive", "failure_first"])
def test_a_strategy_that_compares_images_gets_a_sample_of_many(
    tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic = Clinic(tmp_path, images=12)
    for number, image_id in enumerate(clinic.images):
        clinic.score(image_id, 0.1 * number)
    clinic.submit(clinic.images[0], "bob")
    pools = []
    method = METHODS[strategy]

    def choose(pool: Pool) -> Choice | None:
        pools.append(pool)
        return method.choose(pool)

    choose.__name__ = strategy
    small = replace(method, choose=choose, most_images=4)
    monkeypatch.setattr("lib.activelearning.case_assigner.METHODS", {strategy: small})
    chosen = [
        clinic.case_assigner.assign_next(strategy, Annotator(holder=f"client-{n}", seed=n))["id"]
        for n in range(8)
    ]
    assert len(set(chosen)) == 8
    assert [len(pool.candidates) for pool in pools] == [4] * 8
    assert all(pool.candidates == sorted(pool.candidates) for pool in pools)
    # Each image is a candidate at times.
    assert {i for pool in pools for i in pool.candidates} == set(clinic.images[1:])
    assert all(pool.scores.keys() == {*pool.candidates, *pool.taken} for pool in pools)


def test_a_skipped_case_is_for_others_until_twelve_hours_have_passed(clinic: Clinic) -> None:
    clinic.images = ["a", "b"]
    first = clinic.case_assigner.assign_next("first", ANN)["id"]
    clinic.leases.skip(first, "ann")
    second = clinic.case_assigner.assign_next("first", ANN)["id"]
    assert {first, second} == {"a", "b"}
    none = clinic.case_assigner.assign_next("first", ANN)
    assert none["why"].startswith("1 cases are not labelled yet")
    clinic.leases.skip(second, "ann")
    none = clinic.case_assigner.assign_next("first", ANN)
    assert "id" not in none
    assert none["why"].startswith(
        "no other case is left; you skipped 2: a, b; the first is offered"
    )
    assert none["is_all_labelled"] is False
    assert clinic.case_assigner.assign_next("first", BOB)["id"] == "a"
    clinic.leases.release("a", "bob")
    with clinic.database.writing() as session:
        skipped = (
            session.query(Lease).filter(Lease.image_id == first, Lease.ended_by == "skip").one()
        )
        assert skipped.ended_at is not None
        skipped.ended_at -= timedelta(hours=12, seconds=1)
    assert clinic.case_assigner.assign_next("first", ANN)["id"] == first


@pytest.mark.parametrize("strategy", METHODS)
def test_an_unsuitable_image_is_not_assigned_until_that_is_undone(
    clinic: Clinic, strategy: str
) -> None:
    clinic.images = ["a", "b"]
    for image_id in clinic.images:
        clinic.score(image_id, 0.5)
    unsuitable = UnsuitableImages(clinic.database)
    unsuitable.mark("a", "abdomen", "ada")
    assert clinic.case_assigner.assign_next(strategy, ANN)["id"] == "b"
    clinic.submit("b", "ann")
    none = clinic.case_assigner.assign_next(strategy, ANN)
    assert none["why"] == "all cases are labelled; 1 are marked as unsuitable: a (abdomen)"
    assert none["is_all_labelled"] is True
    unsuitable.undo("a", "root")
    assert clinic.case_assigner.assign_next(strategy, ANN)["id"] == "a"
