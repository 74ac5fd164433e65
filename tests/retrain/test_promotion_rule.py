import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lib.config import RetrainConfig
from lib.retrain.promotion_rule import bounds, decide_promotion, is_clearly_worse

CONFIG = RetrainConfig(
    promotion_margin=0.01, promotion_confidence=0.9, max_organ_drop=0.05, min_first_dsc=0.5
)
CASES = ("case_a", "case_b", "case_c", "case_d")
ORGANS = {"Brainstem": 0.80, "Parotid_L": 0.70, "Parotid_R": 0.72, "Bone_Mandible": 0.85}

Change = Callable[[int, str], float]


def dice(change: Change = lambda _case, _organ: 0.0) -> dict[str, dict[str, float]]:
    return {
        case: {
            organ: value + 0.01 * number + change(number, organ) for organ, value in ORGANS.items()
        }
        for number, case in enumerate(CASES)
    }


def noise(size: float) -> Change:
    """Return changes that sum to 0 over the cases, and over the organs."""
    signs = {organ: 1 - 2 * (number % 2) for number, organ in enumerate(ORGANS)}
    return lambda case, organ: size * signs[organ] * (1 - 2 * (case % 2))


@pytest.mark.parametrize(
    ("change", "has_more_labels", "is_promoted", "reason"),
    [
        (lambda _c, _o: 0.02, False, True, "better"),
        (lambda _c, _o: -0.02, True, False, "may be worse by more than 0.01"),
        (lambda _c, _o: -0.005, True, True, "non-inferior, and trained on more labels"),
        (lambda _c, _o: -0.005, False, False, "not better, and trained on no more labels"),
        (lambda _c, _o: 0.0, True, True, "non-inferior, and trained on more labels"),
        (lambda _c, _o: 0.0, False, False, "not better, and trained on no more labels"),
        (noise(0.02), True, True, "non-inferior, and trained on more labels"),
        (noise(0.02), False, False, "not better, and trained on no more labels"),
        (noise(0.20), True, False, "may be worse by more than 0.01"),
        (
            lambda _c, o: -0.06 if o == "Parotid_L" else 0.05,
            True,
            False,
            "Parotid_L falls by 0.060",
        ),
        (lambda _c, o: -0.04 if o == "Parotid_L" else 0.05, True, True, "better"),
    ],
)
def test_a_candidate_is_promoted_only_if_it_is_not_inferior(
    change: Change,
    has_more_labels: bool,  # noqa: FBT001 - a table's
    is_promoted: bool,  # noqa: FBT001 - a table's
    reason: str,
) -> None:
    decision = decide_promotion(
        dice(change), dice(), CONFIG, has_more_labels=has_more_labels, is_first=False
    )
    assert decision.is_promoted is is_promoted
    assert decision.reason.startswith(reason)


def test_swapped_sides_are_refused() -> None:
    # Both parotids are drawn on the wrong side: no overlap.
    decision = decide_promotion(
        dice(lambda _c, o: -ORGANS[o] if o.startswith("Parotid") else 0.01),
        dice(), CONFIG, has_more_labels=True, is_first=False,
    )  # fmt: skip
    assert not decision.is_promoted


@pytest.mark.parametrize(("shift", "is_promoted"), [(-0.2, True), (-0.3, False)])
def test_the_first_model_needs_a_minimum(
    shift: float,
    is_promoted: bool,  # noqa: FBT001 - a table's
) -> None:
    # The mean is 0.7675 + 0.015.
    decision = decide_promotion(
        dice(lambda _c, _o: shift), None, CONFIG, has_more_labels=True, is_first=True
    )
    assert decision.candidate_dsc == pytest.approx(0.7825 + shift)
    assert decision.is_promoted is is_promoted
    assert "the 0.5 that a first model needs" in decision.reason


def test_a_first_model_that_beats_a_poor_starter_needs_the_minimum_too() -> None:
    poor = dice(lambda _c, _o: -0.6)
    config = replace(CONFIG, min_first_dsc=0.2)
    better = dice(lambda _c, _o: -0.5)
    assert not decide_promotion(
        better, poor, CONFIG, has_more_labels=True, is_first=True
    ).is_promoted
    assert decide_promotion(better, poor, config, has_more_labels=True, is_first=True).is_promoted
    assert decide_promotion(better, poor, CONFIG, has_more_labels=True, is_first=False).is_promoted


@pytest.mark.parametrize("active", [None, {}])
def test_nothing_is_promoted_without_a_comparison(
    active: dict[str, dict[str, float]] | None,
) -> None:
    candidate = {} if active is None else dice()
    decision = decide_promotion(candidate, active, CONFIG, has_more_labels=True, is_first=False)
    assert not decision.is_promoted
    assert "no usable evaluation case" in decision.reason


def test_only_pairs_that_both_have_are_compared() -> None:
    old = dice()
    del old["case_a"]
    del old["case_b"]["Brainstem"]
    decision = decide_promotion(dice(), old, CONFIG, has_more_labels=True, is_first=False)
    assert decision.pairs == 11
    assert decision.difference == pytest.approx(0)


def test_the_bounds_are_those_of_students_t() -> None:
    # Mean 2, standard deviation 1, three values; t with 2 degrees of freedom at 0.9 is 1.8856.
    low, high = bounds(np.array([1.0, 2.0, 3.0]), 0.9)
    assert low == pytest.approx(2 - 1.8856 / math.sqrt(3), abs=1e-4)
    assert high == pytest.approx(2 + 1.8856 / math.sqrt(3), abs=1e-4)
    assert bounds(np.array([0.1]), 0.9) == (0.1, 0.1)


def first(count: int, dice: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return dict(list(dice.items())[:count])


def test_a_candidate_that_is_clearly_worse_is_rejected_before_the_last_case() -> None:
    # Means of cases -0.20, -0.21, -0.19: t with 2 degrees of freedom at 1 - 0.1 / 8 is 6.21,
    # so the upper bound is -0.20 + 6.21 * 0.01 / sqrt(3) = -0.164.
    worse = dice(lambda case, _o: (-0.20, -0.21, -0.19, -0.20)[case])
    assert not is_clearly_worse(first(1, worse), dice(), CONFIG, cases=8)
    assert is_clearly_worse(first(3, worse), dice(), CONFIG, cases=8)
    tight = replace(CONFIG, promotion_margin=0.17)
    assert not is_clearly_worse(first(3, worse), dice(), tight, cases=8)
    # The rule itself rejects what was rejected early.
    for count in (3, 4):
        decision = decide_promotion(
            first(count, worse), dice(), CONFIG, has_more_labels=True, is_first=False
        )
        assert not decision.is_promoted


def test_a_better_an_equal_and_a_varied_candidate_are_evaluated_on_every_case() -> None:
    for change in (
        lambda _c, _o: 0.2,
        lambda _c, _o: 0.0,
        lambda case, _o: (-0.30, -0.02, 0.10, 0.2)[case],
    ):
        for count in (1, 2, 3, 4):
            assert not is_clearly_worse(first(count, dice(change)), dice(), CONFIG, cases=5)


def test_few_candidates_that_are_not_inferior_are_rejected_early() -> None:
    # 400 candidates exactly at the margin, eight cases each: at most one in ten may be rejected early.
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(400):
        served = {f"case_{n}": {"Brainstem": 0.8} for n in range(8)}
        candidate: dict[str, dict[str, float]] = {}
        is_rejected = False
        for case in served:
            candidate[case] = {"Brainstem": 0.79 + rng.normal(0, 0.05)}
            is_rejected = is_rejected or is_clearly_worse(candidate, served, CONFIG, cases=8)
        rejected += is_rejected
    assert rejected <= 40
