"""Properties of all query strategies."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lib.activelearning.pool import (
    NO_SCORES,
    Choice,
    OrganShape,
    Pool,
    ScoreKind,
)
from lib.activelearning.selection.catalogue import METHODS, default_method
from lib.organs.table import ORGANS
from tests.activelearning.pools import cohort, organ_score, scored_pool, to_image_score

ALL = sorted(METHODS)
SCORING = sorted(name for name, method in METHODS.items() if method.needs)
SEEDS = range(40)


def choose(name: str, pool: Pool) -> Choice:
    choice = METHODS[name].choose(pool)
    assert choice is not None
    return choice


def only(pool: Pool, scored: list[str]) -> Pool:
    """Return the pool with scores of `scored` and of the labelled images only."""
    keep = {*scored, *pool.taken}
    return replace(
        pool,
        scores={name: score for name, score in pool.scores.items() if name in keep},
        appearance={name: row for name, row in pool.appearance.items() if name in keep},
    )


def alike(number: int, seed: int) -> Pool:
    """Return a pool of images with identical scores."""
    organs = {
        "Brainstem": replace(organ_score(), volume_cv=0.1, pairwise_dice=0.9),
        "OpticChiasm": replace(organ_score(), volume_cv=0.1, pairwise_dice=0.8),
    }
    names = [f"pt_{n}" for n in range(number)]
    scores = [
        to_image_score(name, organs=organs, features=(0.3, 0.7, 0.1), has_samples=True)
        for name in names
    ]
    rows = {name: np.array([0.3, 0.7, 0.1], np.float32) for name in names}
    return replace(scored_pool(scores, seed=seed), appearance=rows)


def test_the_catalogue_has_these_strategies() -> None:
    assert list(METHODS) == [
        "first",
        "random",
        "random_foreground",
        "entropy",
        "claspe",
        "structure_qc",
        "suggestive",
        "coldstart",
        "failure_first",
    ]
    assert all(name == method.name for name, method in METHODS.items())


def test_each_strategy_has_a_description_of_one_line_and_a_source() -> None:
    for name, method in METHODS.items():
        assert 10 < len(method.description) < 100
        assert "\n" not in method.description
        assert bool(method.paper) == (name not in {"first", "random"})


def test_each_strategy_names_the_scores_that_it_needs() -> None:
    assert {name: method.needs for name, method in METHODS.items() if method.needs} == {
        "random_foreground": (ScoreKind.PREDICTION,),
        "entropy": (ScoreKind.PREDICTION,),
        "claspe": (ScoreKind.PREDICTION,),
        "structure_qc": (ScoreKind.PREDICTION, ScoreKind.SAMPLES),
        "suggestive": (ScoreKind.PREDICTION,),
        "coldstart": (ScoreKind.APPEARANCE,),
        "failure_first": (ScoreKind.PREDICTION, ScoreKind.LABEL_SHAPES),
    }


def test_without_a_model_the_default_needs_no_model() -> None:
    assert (default_method(True), default_method(False)) == ("claspe", "coldstart")  # noqa: FBT003 - the only argument
    assert ScoreKind.PREDICTION not in METHODS[default_method(False)].needs  # noqa: FBT003 - as above


@pytest.mark.parametrize("name", ALL)
def test_without_a_candidate_nothing_is_chosen(name: str) -> None:
    assert METHODS[name].choose(Pool(candidates=[])) is None
    assert METHODS[name].choose(replace(cohort(3), candidates=[])) is None


@pytest.mark.parametrize("name", ALL)
def test_the_only_candidate_is_chosen_with_and_without_scores(name: str) -> None:
    assert choose(name, Pool(candidates=["only"])).image_id == "only"
    single = cohort(1)
    choice = choose(name, single)
    assert choice.image_id == single.candidates[0]
    assert (choice.rank, choice.ranked_candidates) in {(1, 1), (None, 1), (None, 0)}
    assert choose(name, alike(1, 0)).image_id == "pt_0"


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_the_candidates_does_not_matter(name: str) -> None:
    for seed in range(10):
        pool = cohort(30, seed=seed)
        turned = replace(
            pool,
            candidates=[*reversed(pool.candidates), pool.candidates[7]],
            taken=list(reversed(pool.taken)),
            scores=dict(list(pool.scores.items())[::-1]),
            shapes=dict(list(pool.shapes.items())[::-1]),
            appearance=dict(list(pool.appearance.items())[::-1]),
        )
        assert choose(name, pool) == choose(name, pool) == choose(name, turned)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"first"}))
def test_the_seed_decides_between_equal_candidates(name: str) -> None:
    chosen = [choose(name, alike(12, seed)).image_id for seed in range(120)]
    assert len(set(chosen)) == 12
    # 10 of 120 each, plus more than three standard deviations.
    assert max(chosen.count(image_id) for image_id in set(chosen)) < 22


@pytest.mark.parametrize("name", SCORING)
def test_candidates_without_the_needed_scores_come_last(name: str) -> None:
    pool = cohort(30)
    scored = ["pt_0004", "pt_0017", "pt_0022"]
    for seed in SEEDS:
        choice = choose(name, replace(only(pool, scored), seed=seed))
        assert choice.image_id in scored
        assert choice.ranked_candidates == 3
    left = [image_id for image_id in pool.candidates if image_id not in scored]
    rest = replace(only(pool, scored), candidates=left)
    assert choose(name, rest).image_id in left


@pytest.mark.parametrize("name", SCORING)
def test_without_scores_a_candidate_is_drawn_at_random(name: str) -> None:
    pool = only(cohort(30), [])
    choices = [choose(name, replace(pool, seed=seed)) for seed in SEEDS]
    assert {(c.why, c.rank, c.ranked_candidates, c.score, c.organs) for c in choices} == {
        (NO_SCORES, None, 0, None, ())
    }
    assert len({c.image_id for c in choices}) > 15


@pytest.mark.parametrize("name", SCORING)
def test_scores_that_are_not_finite_are_not_ranked(name: str) -> None:
    pool = cohort(12)
    broken, sound = list(pool.candidates[:6]), list(pool.candidates[6:])
    nan = float("nan")
    bad_shape = OrganShape(volume_ml=nan, centroid_mm=(nan, nan, nan))
    scores = dict(pool.scores)
    for image_id in broken:
        organs = {
            organ: replace(score, entropy=nan, shape=bad_shape, volume_cv=nan, pairwise_dice=nan)
            for organ, score in scores[image_id].organs.items()
        }
        features = np.full(8, nan, np.float32)
        scores[image_id] = replace(
            scores[image_id], entropy=nan, foreground=nan, organs=organs, features=features
        )
    rows = {**pool.appearance, **{name: np.full(8, nan) for name in broken}}
    for seed in SEEDS:
        damaged = replace(pool, scores=scores, appearance=rows, seed=seed)
        assert choose(name, damaged).image_id in sound


@pytest.mark.parametrize("name", ALL)
def test_every_candidate_is_chosen_once(name: str) -> None:
    pool, order = cohort(15), []
    while (choice := METHODS[name].choose(pool)) is not None:
        order.append(choice.image_id)
        left = [image_id for image_id in pool.candidates if image_id != choice.image_id]
        pool = replace(pool, candidates=left, taken=[*pool.taken, choice.image_id])
    assert sorted(order) == [f"pt_{n:04d}" for n in range(15)]


@pytest.mark.parametrize("name", ALL)
def test_the_reason_is_one_short_sentence_and_fits_in_json(name: str) -> None:
    for seed in SEEDS:
        choice = choose(name, cohort(20, seed=seed))
        assert 0 < len(choice.why) < 200
        assert "\n" not in choice.why
        assert len(choice.organs) <= 3
        assert set(choice.organs) <= set(ORGANS)
        assert choice.rank is None or 1 <= choice.rank <= choice.ranked_candidates <= 20
        assert (
            json.loads(json.dumps(choice.as_dict(), allow_nan=False))["of"]
            == choice.ranked_candidates
        )
