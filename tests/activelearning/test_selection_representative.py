from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from lib.activelearning.pool import Choice, ImageScore, Pool
from lib.activelearning.selection.representative import (
    cluster,
    coldstart,
    feature_table,
    suggestive,
    typicality,
)
from lib.imaging.quantities import FloatArray
from tests.activelearning.pools import scored_pool, to_image_score


def chosen(choice: Choice | None) -> Choice:
    assert choice is not None
    return choice


def like(direction: int, name: str, count: int, *, entropy: float) -> list[ImageScore]:
    """Return images whose features point nearly along one axis."""
    generator = np.random.default_rng(direction)
    rows = 0.1 * generator.normal(size=(count, 5)) + 3.0 * np.eye(5)[direction]
    return [
        to_image_score(f"{name}_{n}", entropy=entropy, features=row) for n, row in enumerate(rows)
    ]


def test_an_image_unlike_the_labelled_ones_is_chosen() -> None:
    scores = like(0, "old", 20, entropy=0.5) + like(1, "new", 20, entropy=0.49)
    taken = ["old_0", "old_1"]
    # 38 candidates: the 16 most uncertain would all be old ones.
    assert chosen(suggestive(scored_pool(scores, taken=taken))).image_id.startswith("old")
    mixed = like(0, "old", 20, entropy=0.5) + like(1, "new", 20, entropy=0.5)
    for seed in range(10):
        choice = chosen(suggestive(scored_pool(mixed, taken=taken, seed=seed)))
        assert choice.image_id.startswith("new")
        assert choice.why.startswith("of the 16 cases that the model is least sure of, this one")
        assert "unlike the cases contoured so far" in choice.why


def test_the_first_choice_is_similar_to_the_most_others() -> None:
    scores = like(0, "many", 30, entropy=0.5) + like(1, "few", 8, entropy=0.5)
    for seed in range(10):
        choice = chosen(suggestive(scored_pool(scores, seed=seed)))
        assert choice.image_id.startswith("many")
        assert choice.rank == 1
        assert choice.ranked_candidates == 38


def test_with_few_candidates_half_of_them_are_compared() -> None:
    sure = like(1, "new", 2, entropy=0.1)
    unsure = like(0, "old", 2, entropy=0.5)
    choice = chosen(suggestive(scored_pool(sure + unsure)))
    assert choice.image_id.startswith("old")
    assert "of the 2 cases" in choice.why


def test_the_suggestion_is_the_greedy_step_of_the_maximum_cover() -> None:
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(25, 6))
    scores = [
        to_image_score(f"pt_{n:02d}", entropy=0.5, features=row) for n, row in enumerate(rows)
    ]
    # Of 20 candidates, the 10 with the higher entropy are compared.
    scores = [
        replace(score, entropy=0.9 if n < 10 else 0.1) if n < 20 else score
        for n, score in enumerate(scores)
    ]
    taken = [f"pt_{n:02d}" for n in range(20, 25)]

    def covered(subset: list[int]) -> float:
        return sum(
            max(
                float(row @ rows[s]) / float(np.linalg.norm(row) * np.linalg.norm(rows[s]))
                for s in subset
            )
            for row in rows
        )

    taken_rows = list(range(20, 25))
    gains = [covered([*taken_rows, n]) - covered(taken_rows) for n in range(10)]
    choice = chosen(suggestive(scored_pool(scores, taken=taken)))
    assert choice.image_id == f"pt_{int(np.argmax(gains)):02d}"
    assert choice.score == pytest.approx(max(gains) / 25, abs=1e-6)


def test_features_of_another_network_are_left_out() -> None:
    scores = like(0, "pt", 6, entropy=0.2)
    scores.append(to_image_score("other", entropy=0.9, features=[1.0, 2.0]))
    choice = chosen(suggestive(scored_pool(scores)))
    assert choice.image_id.startswith("pt")
    assert choice.ranked_candidates == 6


def blobs(*sizes: int, spread: float = 0.1, outliers: int = 0) -> dict[str, FloatArray]:
    """Return groups of images, far from each other, `a_0` ...; and outliers, each far from everything."""
    generator = np.random.default_rng(1)
    centres = 10.0 * np.eye(8)
    points = {
        f"{'abcdefgh'[k]}_{n}": (centres[k] + spread * generator.normal(size=8)).astype(np.float32)
        for k, size in enumerate(sizes)
        for n in range(size)
    }
    for n in range(outliers):
        points[f"out_{n}"] = (30.0 * generator.normal(size=8)).astype(np.float32)
    return points


def of_appearance(rows: Mapping[str, FloatArray], taken: list[str], seed: int = 0) -> Pool:
    left = [name for name in rows if name not in taken]
    return Pool(candidates=left, taken=taken, appearance=rows, seed=seed)


@pytest.mark.parametrize("seed", range(8))
def test_each_choice_is_of_another_cluster_the_largest_first(seed: int) -> None:
    rows, taken = blobs(20, 14, 9, outliers=2), list[str]()
    for _ in range(3):
        taken.append(chosen(coldstart(of_appearance(rows, taken, seed))).image_id)
    assert sorted(name[0] for name in taken) == ["a", "b", "c"]
    assert taken[0][0] == "a"


@pytest.mark.parametrize("seed", range(8))
def test_a_lone_image_is_not_typical(seed: int) -> None:
    rows = blobs(30, outliers=1)
    taken: list[str] = []
    for _ in range(3):
        taken.append(chosen(coldstart(of_appearance(rows, taken, seed))).image_id)
    assert "out_0" not in taken


def test_the_densest_point_is_the_most_typical() -> None:
    rows = np.array([[0.0], [1.0], [1.5], [2.0], [5.0]])
    # Mean distances to all others: 9.5/4, 6.5/4, 6/4, 6.5/4, 15.5/4.
    np.testing.assert_allclose(1 / typicality(rows), np.array([9.5, 6.5, 6, 6.5, 15.5]) / 4)
    line = {f"pt_{n}": np.array([x, 1.0]) for n, (x,) in enumerate(rows)}
    choice = chosen(coldstart(of_appearance(line, [])))
    assert choice.image_id == "pt_2"
    assert choice.why == "typical of 5 scans that look alike; none of them contoured so far"


def test_the_scale_of_a_feature_does_not_matter() -> None:
    rows = blobs(12, 7, 5)
    scaled = {name: row * np.array([1e4, 1, 1, 1e-3, 1, 1, 1, 1]) for name, row in rows.items()}
    for taken in (["a_0"], ["a_0", "b_0"]):
        choice = coldstart(of_appearance(rows, taken))
        other = coldstart(of_appearance(scaled, taken))
        assert chosen(choice).image_id == chosen(other).image_id


def test_if_every_cluster_has_labelled_images_that_with_the_fewest_is_used() -> None:
    # 58 images at only two points: there are two clusters, however many are requested.
    rows: dict[str, FloatArray] = {f"a_{n}": np.zeros(3) for n in range(40)}
    rows |= {f"b_{n}": np.ones(3) for n in range(18)}
    choice = chosen(coldstart(of_appearance(rows, [f"a_{n}" for n in range(5)] + ["b_0"])))
    assert choice.image_id.startswith("b")
    assert choice.why == "typical of 18 scans that look alike; 1 of them contoured so far"


def test_clusters_are_the_separate_groups_of_points() -> None:
    names, rows = feature_table(blobs(10, 10, 10))
    for seed in range(10):
        group = cluster(rows, 3, np.random.default_rng(seed))
        assert len({(name[0], int(g)) for name, g in zip(names, group, strict=True)}) == 3
