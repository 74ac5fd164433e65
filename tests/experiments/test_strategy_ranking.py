from dataclasses import replace

import numpy as np
import pytest

from lib.activelearning.pool import Choice
from lib.experiments.paired_statistics import PairedDifference
from lib.experiments.round_records import LabelCost, Round, RoundKey
from lib.experiments.strategy_ranking import (
    Curve,
    Pair,
    PairConclusion,
    area,
    compare_pairs,
    conclude,
    learning_curves,
    strategy_ranks,
)
from tests.experiments.strategy_rounds import make_curve, make_protocol, make_round


def test_area_by_hand() -> None:
    # 4 to 8: (0.2 + 0.4) / 2 * 4 = 1.2; 8 to 16: (0.4 + 0.6) / 2 * 8 = 4; together 5.2 over a width of 12.
    assert area(np.array([4.0, 8.0, 16.0]), np.array([0.2, 0.4, 0.6])) == pytest.approx(5.2 / 12)


def test_area_of_a_level_curve_is_its_height() -> None:
    assert area(np.array([4.0, 5.0, 32.0]), np.full(3, 0.7)) == pytest.approx(0.7)


def test_an_organ_without_reference_is_no_part_of_a_cases_mean() -> None:
    rounds = tuple(
        make_round(
            RoundKey(0, n, "random"),
            {"a": {"Larynx": 0.4, "Brainstem": 0.8}, "b": {"Brainstem": 0.5}, "c": {}},
            cases=2 + n,
            voxels=10 + n,
        )
        for n in range(2)
    )
    curve = Curve("random", 0, rounds)
    assert curve.case_areas() == pytest.approx({"a": 0.6, "b": 0.5})
    # Of the organs' means: 0.4 of the larynx, 0.65 of the brainstem.
    assert curve.dsc == pytest.approx([0.525, 0.525])


def test_a_rank_by_hand() -> None:
    curves = [make_curve("random", 0, (0.3, 0.4, 0.5)), make_curve("random", 1, (0.2, 0.3, 0.4))]
    (rank,) = strategy_ranks(curves)
    # The cases' mean is 0.045 above `dsc`; 2 to 4: 0.35 * 2, 4 to 8: 0.45 * 4, over 6.
    assert rank.aubc == pytest.approx([2.5 / 6 + 0.045, 1.9 / 6 + 0.045])
    assert rank.final == pytest.approx([0.545, 0.445])
    assert rank.cost[0] == LabelCost(cases=8, slices=80, voxels=800)
    assert rank.ask_s == pytest.approx([2.5, 2.5])
    assert rank.random_share == 0


def test_areas_by_voxels_cover_the_range_that_all_strategies_share() -> None:
    cheap = make_curve("cheap", 0, (0.2, 0.4, 0.6), voxels=100)  # 200, 400, 800
    dear = make_curve("dear", 0, (0.2, 0.4, 0.6), voxels=200)  # 200, 600, 1400
    by_name = {rank.strategy: rank for rank in strategy_ranks([cheap, dear])}
    # Up to 800: 0.3 * 200 + 0.5 * 400 over 600; 0.3 * 400 + (0.4 + 0.45) / 2 * 200 over 600.
    assert by_name["cheap"].voxel_aubc[0] == pytest.approx(260 / 600 + 0.045)
    assert by_name["dear"].voxel_aubc[0] == pytest.approx(205 / 600 + 0.045)
    assert by_name["cheap"].aubc == pytest.approx(by_name["dear"].aubc)


def test_choices_without_scores_are_counted() -> None:
    curve = make_curve("entropy", 0, (0.2, 0.3, 0.4))
    unranked = Choice(image_id="p", ranked_candidates=0, why="no scores yet")
    last = replace(curve.rounds[-1], picks=(*curve.rounds[-1].picks, unranked, unranked))
    (rank,) = strategy_ranks([replace(curve, rounds=(*curve.rounds[:-1], last))])
    assert rank.random_share == pytest.approx(2 / 4)


def test_a_steady_gain_in_every_seed_beats() -> None:
    curves = [make_curve("random", seed, (0.3, 0.4, 0.5)) for seed in range(3)]
    curves += [
        make_curve("good", seed, (0.3, 0.4, 0.5), gain=0.02 + 0.001 * seed) for seed in range(3)
    ]
    (pair,) = compare_pairs(curves)
    # The gain counts half over 2 of 6 and fully over 4 of 6; case i gains 1 + 0.1 i times it, on average 1.45.
    each = np.array([0.020, 0.021, 0.022]) * 1.45 * 5 / 6
    assert pair.swapped().difference.mean == pytest.approx(each.mean())
    # Ten cases of one sign: 2 / 2**10.
    assert pair.difference.p == pytest.approx(2 / 1024)
    half = 4.302653 * each.std(ddof=1) / 3**0.5
    expected = (each.mean() - half, each.mean() + half)
    assert pair.swapped().seed_interval == pytest.approx(expected, rel=1e-6)
    assert (pair.seeds_ahead, pair.swapped().seeds_ahead, len(pair.by_seed)) == (0, 3, 3)
    assert conclude(pair) is PairConclusion.LOSES
    assert conclude(pair.swapped()) is PairConclusion.BEATS


def test_a_gain_in_one_seed_only_does_not_beat() -> None:
    curves = [make_curve("random", seed, (0.3, 0.4, 0.5)) for seed in range(3)]
    curves += [
        make_curve("lucky", seed, (0.3, 0.4, 0.5), gain=gain)
        for seed, gain in enumerate((0.09, -0.001, 0.002))
    ]
    pair = compare_pairs(curves)[0].swapped()
    assert pair.difference.p < 0.05
    assert pair.seeds_ahead == 2
    assert conclude(pair) is PairConclusion.AHEAD


def test_p_is_corrected_for_the_number_of_pairs() -> None:
    curves = [make_curve("random", 0, (0.3, 0.4, 0.5))]
    curves += [make_curve(f"s{n}", 0, (0.3, 0.4, 0.5), gain=0.01 * (n + 1)) for n in range(3)]
    assert [pair.difference.p for pair in compare_pairs(curves)] == pytest.approx(
        [6 * 2 / 1024] * 6
    )


def test_equal_curves_are_equal() -> None:
    (pair,) = compare_pairs([make_curve(name, 0, (0.3, 0.4, 0.5)) for name in ("random", "same")])
    assert (pair.difference.mean, pair.difference.p, set(pair.by_seed)) == (0.0, 1.0, {0.0})
    assert conclude(pair) is PairConclusion.EQUAL


@pytest.mark.parametrize(
    ("p", "difference", "by_seed", "expected"),
    [
        (0.01, 0.02, (0.019, 0.02, 0.021), PairConclusion.BEATS),
        (0.01, 0.02, (0.0, 0.01, 0.05), PairConclusion.AHEAD),
        (0.01, 0.02, (0.02,), PairConclusion.AHEAD),
        (0.06, 0.02, (0.019, 0.02, 0.021), PairConclusion.EQUAL),
        (0.05, 0.02, (0.019, 0.02, 0.021), PairConclusion.EQUAL),
        (0.01, -0.02, (-0.019, -0.02, -0.021), PairConclusion.LOSES),
        (0.01, -0.02, (0.0, -0.01, -0.05), PairConclusion.BEHIND),
        (0.01, -0.02, (-0.02,), PairConclusion.BEHIND),
    ],
)
def test_conclusions_by_the_numbers(
    p: float, difference: float, by_seed: tuple[float, ...], expected: PairConclusion
) -> None:
    over_cases = PairedDifference(difference, difference - 0.01, difference + 0.01, p)
    pair = Pair(first="a", second="b", difference=over_cases, by_seed=by_seed)
    assert conclude(pair) is expected


def test_only_finished_seeds_are_compared() -> None:
    protocol = make_protocol("random", "entropy", seeds=2)
    finished: dict[RoundKey, Round] = {}
    for seed in range(2):
        for name in protocol.strategies:
            finished |= {one.place: one for one in make_curve(name, seed, (0.1, 0.2, 0.3)).rounds}
    assert len(learning_curves(protocol, finished)) == 4
    del finished[RoundKey(1, 2, "entropy")]
    assert [(curve.strategy, curve.seed) for curve in learning_curves(protocol, finished)] == [
        ("random", 0),
        ("entropy", 0),
    ]
