from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lib.errors import StateError
from lib.models.model_history import PROMOTED, REJECTED, WAITING, Candidate, ModelHistory
from lib.retrain.runs import Runs
from lib.storage.database import Database


@pytest.fixture
def models(tmp_path: Path) -> ModelHistory:
    return ModelHistory(Database(tmp_path / "state.sqlite"))


def labels(*named: str) -> list[dict[str, object]]:
    """Return labels from words such as `case_1:a`, image id and digest."""
    pairs = (word.split(":") for word in named)
    return [{"image_id": image, "version": 1, "digest": digest} for image, digest in pairs]


def test_a_recorded_candidate_is_read_unchanged(models: ModelHistory) -> None:
    seen = labels("case_1:a", "case_2:b")
    models.record(
        Candidate(
            version="v1", recipe="tiny", parent="v0", commit="abc", labels=seen, seed=7,
            metrics={"Brainstem": 0.8, "Larynx": None},
        )
    )  # fmt: skip
    row = models.get("v1")
    assert row is not None
    assert (row.recipe, row.parent, row.commit, row.seed) == ("tiny", "v0", "abc", 7)
    assert (row.labels, row.labels_seen) == (seen, 2)
    assert row.metrics == {"Brainstem": 0.8, "Larynx": None}
    assert (row.decision, row.reason, row.decided_at) == (WAITING, "", None)
    assert models.get("v2") is None


def test_equal_weights_are_one_row(models: ModelHistory) -> None:
    models.record(Candidate(version="v1", recipe="tiny", seed=1))
    models.decide("v1", decision=REJECTED, reason="worse")
    again = models.record(Candidate(version="v1", recipe="tiny", seed=2))
    assert (again.seed, again.decision) == (1, REJECTED)
    assert len(models.all()) == 1


def test_a_row_made_from_files_is_completed_by_the_run_that_was_killed(
    tmp_path: Path,
) -> None:
    database = Database(tmp_path / "state.sqlite")
    models = ModelHistory(database)
    run = Runs(database).queue(why="a test", request={}, cases=[], initial_version=None)
    from_files: list[dict[str, object]] = [
        {"image_id": "one", "version": None, "digest": "of both files"}
    ]
    models.record(Candidate(version="v1", recipe="tiny", labels=labels("one:a")))
    models.record(Candidate(version="v2", recipe="tiny", parent="v1", labels=from_files))
    complete = Candidate(
        version="v2", recipe="tiny", parent="v1", run_id=run.id, labels=labels("one:a")
    )
    row = models.record(complete)
    # The label is also its parent's, and is counted once because both have the same digest.
    assert (row.run_id, row.labels, row.labels_seen) == (run.id, labels("one:a"), 1)
    assert row.decision == WAITING
    models.decide("v2", decision=REJECTED, reason="worse")
    assert models.record(complete).decision == REJECTED


def test_labels_are_counted_once_over_a_model_and_its_parents(models: ModelHistory) -> None:
    models.record(Candidate(version="v1", recipe="tiny", labels=labels("one:a", "two:b")))
    second = labels("two:b", "two:c", "three:d")
    row = models.record(Candidate(version="v2", recipe="tiny", parent="v1", labels=second))
    # one:a and two:b of the parent, two:c and three:d of its own: a new contour is a new label.
    assert row.labels_seen == 4
    row = models.record(Candidate(version="v3", recipe="tiny", parent="v2", labels=labels("x:e")))
    assert row.labels_seen == 5
    lineage = {(label["image_id"], label["digest"]) for label in models.lineage_labels("v3")}
    assert lineage == {("one", "a"), ("two", "b"), ("two", "c"), ("three", "d"), ("x", "e")}


def test_circular_and_missing_parents_end_the_lineage(models: ModelHistory) -> None:
    models.record(Candidate(version="v1", recipe="tiny", parent="v2", labels=labels("one:a")))
    models.record(Candidate(version="v2", recipe="tiny", parent="v1", labels=labels("two:b")))
    assert len(models.lineage_labels("v1")) == 2
    row = models.record(Candidate(version="v3", recipe="t", parent="gone", labels=labels("x:c")))
    assert row.labels_seen == 1
    assert models.lineage_labels("missing") == []


def test_a_decision_is_stored_with_its_reason_and_earlier_decisions(models: ModelHistory) -> None:
    models.record(Candidate(version="v1", recipe="tiny"))
    models.decide("v1", decision=REJECTED, reason="worse", metrics={"Larynx": 0.5}, report={"a": 1})
    row = models.decide("v1", decision=PROMOTED, reason="looked at it", by="ann")
    assert (row.decision, row.reason) == (PROMOTED, "looked at it")
    assert row.metrics == {"Larynx": 0.5}
    assert row.report["a"] == 1
    (earlier,) = row.report["earlier_decisions"]
    assert (earlier["decision"], earlier["reason"]) == (REJECTED, "worse")
    row = models.decide("v1", decision=REJECTED, reason="after all", report={"b": 2})
    assert [e["decision"] for e in row.report["earlier_decisions"]] == [REJECTED, PROMOTED]
    assert row.report["b"] == 2
    assert row.pending is None


def test_a_promoted_model_is_pending_until_it_is_active(models: ModelHistory) -> None:
    models.record(Candidate(version="v1", recipe="tiny"))
    assert models.pending() == []
    models.decide("v1", decision=PROMOTED, reason="better", by="ann")
    (due,) = models.pending()
    assert due.pending == {"reason": "better", "by": "ann"}
    models.add_promotion("v1", previous="v0", reason="better", by="ann")
    assert models.pending() == []
    (promotion,) = models.promotions()
    assert (promotion.version, promotion.previous, promotion.by) == ("v1", "v0", "ann")
    assert models.was_promoted("v1")
    assert not models.was_promoted("v0")


def test_models_and_promotions_are_listed_newest_first(models: ModelHistory) -> None:
    then = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for day in (2, 1, 3):
        at = then + timedelta(days=day)
        models.record(Candidate(version=f"v{day}", recipe="tiny", created_at=at))
        models.add_promotion(f"v{day}", previous=None, reason="", by="ann")
    assert [row.version for row in models.all()] == ["v3", "v2", "v1"]
    assert [row.version for row in models.promotions()] == ["v3", "v1", "v2"]


def test_an_unrecorded_model_cannot_be_decided_or_pruned(models: ModelHistory) -> None:
    with pytest.raises(StateError, match="v1: the model is not in the model history"):
        models.decide("v1", decision=PROMOTED, reason="better")
    with pytest.raises(StateError, match="v1: the model is not in the model history"):
        models.mark_pruned("v1")
    models.record(Candidate(version="v1", recipe="tiny"))
    with pytest.raises(StateError, match="unknown decision 'liked'"):
        models.decide("v1", decision="liked", reason="")
    models.mark_pruned("v1")
    assert models.all()[0].pruned_at is not None
