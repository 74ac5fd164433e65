from dataclasses import replace

import pytest

from lib.activelearning.pool import Choice, ImageScore, OrganScore, Pool
from lib.activelearning.selection.uncertainty import beta, claspe, entropy, structure_qc
from tests.activelearning.pools import organ_score, scored_pool, to_image_score


def chosen(choice: Choice | None) -> Choice:
    assert choice is not None
    return choice


def by_entropies(image_id: str, whole: float, **organs: float | None) -> ImageScore:
    scores = {name: organ_score(entropy=value) for name, value in organs.items()}
    return to_image_score(image_id, entropy=whole, organs=scores)


def sampled(image_id: str, **organs: tuple[float | None, float | None]) -> ImageScore:
    """Return a score with pairwise Dice and variation of the volume of each organ."""
    scores = {
        name: OrganScore(entropy=0.1, shape=None, pairwise_dice=dice, volume_cv=cv)
        for name, (dice, cv) in organs.items()
    }
    return to_image_score(image_id, organs=scores, has_samples=True)


def test_entropy_chooses_the_case_with_the_highest_entropy() -> None:
    choice = chosen(
        entropy(
            scored_pool(
                [
                    by_entropies("a", 0.02, Brainstem=0.9),
                    by_entropies(
                        "b", 0.03, Brainstem=0.1, OpticChiasm=0.4, Parotid_L=None, Parotid_R=0.2
                    ),
                    by_entropies("c", 0.01, Brainstem=0.5),
                ]
            )
        )
    )
    assert choice == Choice(
        image_id="b",
        rank=1,
        ranked_candidates=3,
        score=0.03,
        organs=("OpticChiasm", "Parotid_R", "Brainstem"),
        why="the model is least sure of this case, above all of OpticChiasm, Parotid_R and Brainstem",
    )


def test_two_queries_of_three_are_for_one_organ_each_equally_often() -> None:
    # The chiasm is predicted in one case only, which has a low entropy as a whole.
    scores = [by_entropies(f"pt_{n}", 0.05, Brainstem=0.2, Parotid_L=0.2) for n in range(30)]
    scores.append(by_entropies("rare", 0.0001, Brainstem=0.0001, OpticChiasm=0.0001))
    choices = [chosen(claspe(scored_pool(scores, seed=seed))) for seed in range(2000)]
    by_organ = {
        organ: [choice for choice in choices if choice.organs == (organ,)]
        for organ in ("Brainstem", "OpticChiasm", "Parotid_L")
    }
    for organ_choices in by_organ.values():
        assert len(organ_choices) / len(choices) == pytest.approx(0.22, abs=0.03)
    assert {(c.image_id, c.rank, c.ranked_candidates) for c in by_organ["OpticChiasm"]} == {
        ("rare", 1, 1)
    }
    assert {c.ranked_candidates for c in by_organ["Brainstem"]} == {31}
    assert {c.ranked_candidates for c in by_organ["Parotid_L"]} == {30}
    whole = [choice for choice in choices if "the case as a whole" in choice.why]
    assert len(whole) / len(choices) == pytest.approx(0.34, abs=0.03)
    assert {len(choice.organs) for choice in whole} == {2}


def test_an_organ_that_was_never_predicted_is_not_drawn() -> None:
    scores = [by_entropies(f"pt_{n}", 0.05, Brainstem=0.2, OpticChiasm=None) for n in range(5)]
    choices = [chosen(claspe(scored_pool(scores, seed=seed))) for seed in range(600)]
    assert not any("OpticChiasm" in choice.organs for choice in choices)
    for_stem = sum("drawn for Brainstem" in choice.why for choice in choices)
    assert for_stem / len(choices) == pytest.approx(0.66, abs=0.06)


def test_with_few_labels_chances_are_proportional_to_the_scores() -> None:
    # Gumbel noise of scale 1 on the logarithm draws in proportion to the score (Kirsch et al. 2021).
    scores = [by_entropies("unsure", 0.3), by_entropies("sure", 0.1)]
    choices = [chosen(claspe(scored_pool(scores, seed=seed))) for seed in range(2000)]
    shares = sum(choice.image_id == "unsure" for choice in choices) / len(choices)
    assert shares == pytest.approx(0.75, abs=0.03)
    assert {(c.image_id, c.rank) for c in choices} == {("unsure", 1), ("sure", 2)}


def test_the_noise_decreases_with_the_number_of_labels() -> None:
    scores = [by_entropies(f"pt_{n:02d}", 0.10 + 0.01 * n) for n in range(20)]
    best = []
    for labelled in (0, 15, 30, 60):
        taken = [f"done_{n}" for n in range(labelled)]
        choices = [
            chosen(claspe(replace(scored_pool(scores, seed=seed), taken=taken)))
            for seed in range(300)
        ]
        best.append(sum(choice.image_id == "pt_19" for choice in choices) / 300)
    assert best == sorted(best)
    assert best[0] < 0.15
    assert best[-1] > 0.8


def test_beta_grows_exponentially_from_1_to_100() -> None:
    assert [beta(0), beta(25), beta(50), beta(5000)] == pytest.approx([1.0, 10.0, 100.0, 100.0])


def test_samples_are_ranked_by_the_mean_dice_over_organs() -> None:
    choice = chosen(
        structure_qc(
            scored_pool(
                [
                    # Means of 1 - Dice: 0.15, 0.25, 0.1; "a" has the worst organ and most variation.
                    sampled("a", Brainstem=(0.99, 0.9), OpticChiasm=(0.71, 0.9)),
                    sampled("b", Brainstem=(0.75, 0.1), OpticChiasm=(0.75, 0.1)),
                    sampled("c", Brainstem=(0.9, 0.1), OpticChiasm=(0.9, 0.1)),
                ]
            )
        )
    )
    assert (choice.image_id, choice.rank, choice.ranked_candidates) == ("b", 1, 3)
    assert choice.score == pytest.approx(0.25)


def test_an_organ_that_no_sample_has_is_left_out() -> None:
    pool = scored_pool(
        [
            sampled("a", Brainstem=(0.8, 0.1), OpticChiasm=(None, None)),
            sampled("b", Brainstem=(0.85, 0.1), OpticChiasm=(0.85, 0.1)),
            sampled("nothing", Brainstem=(None, None)),
        ]
    )
    choice = chosen(structure_qc(pool))
    assert (choice.image_id, choice.ranked_candidates, choice.organs) == ("a", 2, ("Brainstem",))


def test_the_variation_of_the_volume_breaks_ties() -> None:
    scores = [sampled("a", Brainstem=(0.8, 0.1)), sampled("b", Brainstem=(0.8, 0.3))]
    scores.append(sampled("c", Brainstem=(0.9, 0.9)))
    for seed in range(20):
        assert chosen(structure_qc(scored_pool(scores, seed=seed))).image_id == "b"


def test_cases_without_samples_are_not_ranked() -> None:
    without_samples = replace(sampled("a", Brainstem=(0.1, 0.9)), has_samples=False)
    pool: Pool = scored_pool([without_samples, sampled("b", Brainstem=(0.9, 0.1))])
    choice = chosen(structure_qc(pool))
    assert (choice.image_id, choice.ranked_candidates) == ("b", 1)
