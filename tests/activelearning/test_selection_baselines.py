from collections import Counter

import pytest

from lib.activelearning.pool import Choice, Pool
from lib.activelearning.selection.baselines import first, random, random_foreground
from tests.activelearning.pools import organ_score, scored_pool, to_image_score

IDS = [f"pt_{n}" for n in range(50)]


def test_first_is_the_first_in_alphabetical_order() -> None:
    assert first(Pool(candidates=["b", "a", "c"])) == Choice(
        image_id="a", rank=1, ranked_candidates=3, why="the first by name"
    )


def test_random_draws_all_candidates_equally_often() -> None:
    counts: Counter[str] = Counter()
    for seed in range(2000):
        choice = random(Pool(candidates=IDS, seed=seed))
        assert choice is not None
        assert choice.why == "drawn at random from 50"
        counts[choice.image_id] += 1
    assert len(counts) == 50
    assert 15 < min(counts.values()) <= max(counts.values()) < 70


def draws(scores: list[tuple[str, dict[str, float]]], number: int = 3000) -> list[Choice]:
    """Return the choices of `number` seeds, from images with organs of these volumes in mL."""
    images = [
        to_image_score(name, organs={k: organ_score(volume_ml=v) for k, v in volumes.items()})
        for name, volumes in scores
    ]
    choices = [random_foreground(scored_pool(images, seed=seed)) for seed in range(number)]
    return [choice for choice in choices if choice is not None]


def share(choices: list[Choice], image_id: str) -> float:
    return sum(choice.image_id == image_id for choice in choices) / len(choices)


def test_two_draws_of_three_are_weighted_by_an_organ() -> None:
    choices = draws([("a", {"Brainstem": 20.0}), ("b", {"Brainstem": 20.0})])
    assert sum(bool(c.organs) for c in choices) / len(choices) == pytest.approx(2 / 3, abs=0.03)


def test_organs_are_drawn_equally_often_and_cases_by_their_volume() -> None:
    # 1/3 uniformly over three cases; 2/3 by organ: half of these by the chiasm, which only "rare" shows, the
    # other half in proportion to 30, 10 and 0 mL of brainstem.
    choices = draws(
        [
            ("large", {"Brainstem": 30.0}),
            ("small", {"Brainstem": 10.0}),
            ("rare", {"OpticChiasm": 0.5}),
        ]
    )
    assert share(choices, "rare") == pytest.approx(1 / 9 + 1 / 3, abs=0.03)
    assert share(choices, "large") == pytest.approx(1 / 9 + 1 / 4, abs=0.03)
    assert share(choices, "small") == pytest.approx(1 / 9 + 1 / 12, abs=0.03)
    for_chiasm = [choice for choice in choices if choice.organs == ("OpticChiasm",)]
    assert {c.image_id for c in for_chiasm} == {"rare"}
    assert {c.why for c in for_chiasm} == {"drawn at random from 1 that show OpticChiasm"}
    assert {c.score for c in for_chiasm} == {0.5}


def test_without_predicted_organs_all_cases_are_equally_likely() -> None:
    choices = draws([("a", {}), ("b", {})], 200)
    assert {(c.image_id, c.organs) for c in choices} == {("a", ()), ("b", ())}
