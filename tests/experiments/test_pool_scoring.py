from collections.abc import Sequence

import pytest

from lib.activelearning.pool import Choice, Pool, ScoreKind
from lib.activelearning.selection.catalogue import METHODS, Method
from lib.errors import ConfigError
from lib.experiments.pool_scoring import images_to_score, select_batch


def spy(seen: list[Pool], *, answers: Sequence[str | None] = ()) -> Method:
    def choose(pool: Pool) -> Choice | None:
        seen.append(pool)
        name = answers[len(seen) - 1] if answers else min(pool.candidates)
        return (
            None
            if name is None
            else Choice(image_id=name, ranked_candidates=len(pool.candidates), why="w")
        )

    return Method(description="", choose=choose)


def test_a_selected_image_counts_as_taken_for_the_next_choice() -> None:
    seen: list[Pool] = []
    pool = Pool(candidates=("a", "b", "c"), taken=("x",))
    choices = select_batch(spy(seen), pool, 2, seed_of=lambda number: 100 + number)
    assert [choice.image_id for choice in choices] == ["a", "b"]
    assert [tuple(one.candidates) for one in seen] == [("a", "b", "c"), ("b", "c")]
    assert [tuple(one.taken) for one in seen] == [("x",), ("x", "a")]
    assert [one.seed for one in seen] == [100, 101]


@pytest.mark.parametrize("answer", [None, "x", "a"])
def test_a_strategy_that_chooses_no_candidate_is_refused(answer: str | None) -> None:
    pool = Pool(candidates=("a", "b"), taken=("x",))
    with pytest.raises(
        ConfigError, match=r"strategy 'choose', choice 2 of 2: .* expected one of 1 candidates"
    ):
        select_batch(spy([], answers=("a", answer)), pool, 2, seed_of=lambda number: number)


@pytest.mark.parametrize("name", METHODS)
def test_every_strategy_picks_a_whole_pool_each_case_once(name: str) -> None:
    pool = Pool(candidates=[f"p{number}" for number in range(9)])
    choices = select_batch(METHODS[name], pool, 9, seed_of=lambda number: number)
    assert {choice.image_id for choice in choices} == set(pool.candidates)


def test_contour_shapes_are_known_of_labelled_cases_only() -> None:
    images = images_to_score(set(ScoreKind), pool=["a", "b", "c"], labelled=["b"])
    assert list(images[ScoreKind.LABEL_SHAPES]) == ["b"]
    assert list(images[ScoreKind.SAMPLES]) == ["a", "c"]
    assert list(images[ScoreKind.PREDICTION]) == ["a", "b", "c"]
    assert set(images_to_score({ScoreKind.PREDICTION}, pool=["a"], labelled=[])) == {
        ScoreKind.PREDICTION
    }
