import numpy as np
import pytest

from lib.experiments.paired_statistics import holm, mean_sd, paired_difference, seed_interval


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_paired_difference_of_eight_cases_by_hand() -> None:
    differences = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08])
    result = paired_difference(0.5 + differences, np.full(8, 0.5))
    assert result.mean == pytest.approx(0.045)
    assert 0.01 < result.low < result.mean < result.high < 0.08
    # All of one sign: 2 / 2**8 is the least that the exact two-sided test gives.
    assert result.p == pytest.approx(2 / 2**8)


def test_no_difference_has_p_1() -> None:
    result = paired_difference(np.full(3, 0.5), np.full(3, 0.5))
    assert (result.mean, result.low, result.high, result.p) == (0, 0, 0, 1)


def test_interval_and_spread_need_two_seeds() -> None:
    assert seed_interval(np.array([0.1])) is None
    # Mean 0.2, SD 0.1, t(0.975, 2) = 4.302653.
    interval = seed_interval(np.array([0.1, 0.2, 0.3]))
    assert interval is not None
    low, high = interval
    assert low == pytest.approx(0.2 - 4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert high == pytest.approx(0.2 + 4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert mean_sd([0.1]) == (0.1, None)
    assert mean_sd([0.1, 0.3])[1] == pytest.approx(0.02**0.5)
