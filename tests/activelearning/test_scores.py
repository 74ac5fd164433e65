from pathlib import Path
from typing import Any

import pytest

from lib.activelearning.pool import ScoreKind
from lib.activelearning.scores import ScoreCache, ScoreKey, ScoreRecords
from lib.storage.database import Database

SHAPE = {"volume_ml": 20.0, "centroid_mm": [1.0, 2.0, 3.0], "pieces": 1}


@pytest.fixture
def scores(tmp_path: Path) -> ScoreRecords:
    return ScoreRecords(Database(tmp_path / "workflow.sqlite"))


def prediction(entropy: float) -> dict[str, Any]:
    organs = {"Brainstem": {"entropy": 0.2, "shape": SHAPE}}
    return {"entropy": entropy, "foreground": 0.1, "organs": organs, "features": [1.0, 2.0]}


def add(
    scores: ScoreRecords,
    image_id: str,
    version: str,
    kind: ScoreKind,
    values: dict[str, Any],
    **more: Any,
) -> bool:
    return scores.add(ScoreKey(image_id, version, kind), values, **more)


def test_the_active_models_score_is_used_or_else_the_newest_one_of_another_model(
    scores: ScoreRecords,
) -> None:
    cache = ScoreCache(scores)
    add(scores, "a", "m1", ScoreKind.PREDICTION, prediction(0.1))
    add(scores, "a", "m2", ScoreKind.PREDICTION, prediction(0.2))
    add(scores, "b", "m1", ScoreKind.PREDICTION, prediction(0.3))
    cache.refresh()
    by_m1 = {i: d.score.entropy for i, d in cache.scores("m1").items()}
    by_m3 = {i: d.score.model_version for i, d in cache.scores("m3").items()}
    assert by_m1 == {"a": 0.1, "b": 0.3}
    assert by_m3 == {"a": "m2", "b": "m1"}


def test_samples_and_prediction_of_one_model_are_combined_in_either_order(
    scores: ScoreRecords,
) -> None:
    cache = ScoreCache(scores)
    sampled = {"organs": {"Brainstem": {"volume_cv": 0.3, "pairwise_dice": 0.7}}}
    add(scores, "a", "m1", ScoreKind.SAMPLES, sampled)
    cache.refresh()
    assert cache.scores("m1") == {}
    add(scores, "a", "m1", ScoreKind.PREDICTION, prediction(0.1))
    cache.refresh()
    organ = cache.scores("m1")["a"].score.organs["Brainstem"]
    assert (organ.volume_cv, organ.pairwise_dice) == (0.3, 0.7)


def test_a_second_score_of_the_same_image_model_and_kind_is_not_stored(
    scores: ScoreRecords,
) -> None:
    assert add(scores, "a", "m1", ScoreKind.PREDICTION, prediction(0.1))
    assert not add(scores, "a", "m1", ScoreKind.PREDICTION, prediction(0.9))
    cache = ScoreCache(scores)
    cache.refresh()
    assert cache.scores("m1")["a"].score.entropy == 0.1


def test_only_an_unreadable_scan_counts_as_unreadable_until_it_is_scored(
    scores: ScoreRecords,
) -> None:
    add(scores, "bad", "", ScoreKind.APPEARANCE, {"is_unreadable": True}, error="bad: not a CT")
    add(scores, "big", "m1", ScoreKind.PREDICTION, {}, error="MemoryError: ")
    cache = ScoreCache(scores)
    cache.refresh()
    assert cache.unreadable() == {"bad": "bad: not a CT"}
    assert ("big", "m1", ScoreKind.PREDICTION) in cache.done()
    add(scores, "bad", "m1", ScoreKind.PREDICTION, prediction(0.1))
    cache.refresh()
    assert cache.unreadable() == {}


def test_shapes_are_those_of_the_current_label(scores: ScoreRecords) -> None:
    add(scores, "a", "sha1", ScoreKind.LABEL_SHAPES, {"Brainstem": SHAPE})
    cache = ScoreCache(scores)
    cache.refresh()
    assert cache.shapes({"a": "sha2"}) == {}
    assert cache.shapes({"a": "sha1"})["a"]["Brainstem"].volume_ml == 20.0
