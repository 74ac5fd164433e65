from pathlib import Path
from typing import Any

import pytest

from lib.activelearning.pool import ScoreKind
from lib.activelearning.scores import NewScore, ScoreCache, ScoreRecords
from lib.storage.database import Database

SHAPE = {"volume_ml": 20.0, "centroid_mm": [1.0, 2.0, 3.0], "pieces": 1}


@pytest.fixture
def scores(tmp_path: Path) -> ScoreRecords:
    return ScoreRecords(Database(tmp_path / "workflow.sqlite"))


def prediction(entropy: float) -> dict[str, Any]:
    organs = {"Brainstem": {"entropy": 0.2, "shape": SHAPE}}
    return {"entropy": entropy, "foreground": 0.1, "organs": organs, "features": [1.0, 2.0]}


def keep(
    scores: ScoreRecords,
    image_id: str,
    version: str,
    kind: ScoreKind,
    found: dict[str, Any],
    **more: Any,
) -> bool:
    return scores.add(
        NewScore(image_id=image_id, model_version=version, kind=kind, found=found, **more)
    )


def test_the_served_model_s_score_counts_and_before_it_the_newest_other(
    scores: ScoreRecords,
) -> None:
    known = ScoreCache(scores)
    keep(scores, "a", "m1", ScoreKind.PREDICTION, prediction(0.1))
    keep(scores, "a", "m2", ScoreKind.PREDICTION, prediction(0.2))
    keep(scores, "b", "m1", ScoreKind.PREDICTION, prediction(0.3))
    known.refresh()
    by_m1 = {i: d.score.entropy for i, d in known.scores("m1").items()}
    by_m3 = {i: d.score.model_version for i, d in known.scores("m3").items()}
    assert by_m1 == {"a": 0.1, "b": 0.3}
    assert by_m3 == {"a": "m2", "b": "m1"}


def test_samples_join_the_prediction_of_the_same_model_in_either_order(
    scores: ScoreRecords,
) -> None:
    known = ScoreCache(scores)
    sampled = {"organs": {"Brainstem": {"volume_cv": 0.3, "pairwise_dice": 0.7}}}
    keep(scores, "a", "m1", ScoreKind.SAMPLES, sampled)
    known.refresh()
    assert known.scores("m1") == {}
    keep(scores, "a", "m1", ScoreKind.PREDICTION, prediction(0.1))
    known.refresh()
    organ = known.scores("m1")["a"].score.organs["Brainstem"]
    assert (organ.volume_cv, organ.pairwise_dice) == (0.3, 0.7)


def test_one_pair_of_model_and_image_is_kept_once(scores: ScoreRecords) -> None:
    assert keep(scores, "a", "m1", ScoreKind.PREDICTION, prediction(0.1))
    assert not keep(scores, "a", "m1", ScoreKind.PREDICTION, prediction(0.9))
    known = ScoreCache(scores)
    known.refresh()
    assert known.scores("m1")["a"].score.entropy == 0.1


def test_a_scan_that_cannot_be_read_is_known_and_one_that_failed_otherwise_is_not_blamed(
    scores: ScoreRecords,
) -> None:
    keep(scores, "bad", "", ScoreKind.APPEARANCE, {"is_unreadable": True}, trouble="bad: not a CT")
    keep(scores, "big", "m1", ScoreKind.PREDICTION, {}, trouble="MemoryError: ")
    known = ScoreCache(scores)
    known.refresh()
    assert known.unreadable() == {"bad": "bad: not a CT"}
    assert ("big", "m1", ScoreKind.PREDICTION) in known.done()
    keep(scores, "bad", "m1", ScoreKind.PREDICTION, prediction(0.1))
    known.refresh()
    assert known.unreadable() == {}


def test_contours_count_for_the_label_that_is_current(scores: ScoreRecords) -> None:
    keep(scores, "a", "sha1", ScoreKind.LABEL_SHAPES, {"Brainstem": SHAPE})
    known = ScoreCache(scores)
    known.refresh()
    assert known.shapes({"a": "sha2"}) == {}
    assert known.shapes({"a": "sha1"})["a"]["Brainstem"].volume_ml == 20.0
