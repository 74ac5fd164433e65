import math

import numpy as np
import pytest
import torch

from lib.imaging.quantities import LabelArray
from lib.inference.uncertainty import (
    OrganUncertainty,
    normalised_entropy,
    organ_uncertainty,
    pairwise_dice,
    volume_variation,
)

LABELS = {"Brainstem": 1, "Parotid_L": 2, "Parotid_R": 3}


def row(*values: int) -> LabelArray:
    """Return a label volume of one row."""
    return np.array(values, np.uint8).reshape(-1, 1, 1)


def shares(*voxels: tuple[float, ...]) -> torch.Tensor:
    """Return the probabilities of a row of voxels, `(K, X, 1, 1)`."""
    return torch.tensor(voxels).T[:, :, None, None]


def test_entropy_is_1_where_all_classes_are_equally_likely_and_0_where_one_is_certain() -> None:
    result = normalised_entropy(shares((0.25, 0.25, 0.25, 0.25), (0.0, 1.0, 0.0, 0.0)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.ravel(), [1.0, 0.0], atol=1e-6)


def test_entropy_of_two_equally_likely_classes_of_eight_is_a_third() -> None:
    result = normalised_entropy(shares((0.5, 0.5, 0, 0, 0, 0, 0, 0)))
    assert result.item() == pytest.approx(math.log(2) / math.log(8), abs=1e-6)
    assert result.item() == pytest.approx(1 / 3, abs=1e-6)


def test_entropy_by_hand() -> None:
    # -(0.8 ln 0.8 + 0.1 ln 0.1 + 0.1 ln 0.1) = 0.17851 + 2 * 0.23026 = 0.63903; ln 3 = 1.09861
    assert normalised_entropy(shares((0.8, 0.1, 0.1))).item() == pytest.approx(0.58167, abs=1e-4)


def test_volume_variation_by_hand() -> None:
    # mean 10, squares of 4, 0, 4 -> variance 8 / 3
    assert volume_variation([8, 10, 12]) == pytest.approx(math.sqrt(8 / 3) / 10)
    assert volume_variation([5, 5, 5]) == 0.0
    # Mean 1, deviations 1 and 1: one sample does not contain the organ.
    assert volume_variation([2, 0]) == 1.0


@pytest.mark.parametrize("volumes", [[], [7.0], [0.0, 0.0]], ids=["none", "one", "all empty"])
def test_volume_variation_of_nothing_is_none(volumes: list[float]) -> None:
    assert volume_variation(volumes) is None


def test_pairwise_dice_by_hand() -> None:
    samples = [row(1, 1, 0, 2), row(1, 0, 0, 2), row(0, 1, 1, 2)]
    # Value 1: {0,1}, {0}, {1,2}: 2*1/3, 2*1/4, 2*0/3; value 2: always equal.
    background, one, two, three = pairwise_dice(samples, 4)
    assert one == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert two == 1.0
    assert three is None, "no sample contains it"
    assert background is None


def test_pairwise_dice_of_an_organ_that_some_samples_lack() -> None:
    samples = [row(1, 1), row(1, 1), row(0, 0), row(0, 0)]
    # One equal pair, four pairs of present and absent; the pair in which both lack it is left out.
    assert pairwise_dice(samples, 2)[1] == pytest.approx(1 / 5)
    assert pairwise_dice([row(1, 0), row(0, 0), row(0, 0)], 2)[1] == 0.0


def test_pairwise_dice_of_one_sample_is_none() -> None:
    assert pairwise_dice([row(1, 1)], 2) == [None, None]


def test_each_organ_has_its_own_uncertainty() -> None:
    result = organ_uncertainty(
        [row(1, 1, 0, 0), row(1, 1, 0, 2)],
        contours=row(1, 1, 0, 0),
        uncertainty=np.array([0.25, 0.5, 0.9, 0.9], np.float32).reshape(-1, 1, 1),
        labels=LABELS,
    )
    assert result["Brainstem"] == OrganUncertainty(
        mean_entropy=0.375,
        volume_cv=0.0,
        pairwise_dice=1.0,
        samples=2,
        found_in=2,
    )
    # Volumes 0 and 1: mean 0.5, standard deviation 0.5; it is not in the contours, so it has no entropy.
    assert result["Parotid_L"] == OrganUncertainty(
        mean_entropy=None, volume_cv=1.0, pairwise_dice=0.0, samples=2, found_in=1
    )
    assert result["Parotid_R"] == OrganUncertainty(
        mean_entropy=None, volume_cv=None, pairwise_dice=None, samples=2, found_in=0
    )


def test_the_contours_may_be_on_another_grid_than_the_samples() -> None:
    result = organ_uncertainty(
        [row(1, 0), row(1, 0)],
        contours=row(1, 1, 1, 0),
        uncertainty=np.full((4, 1, 1), 0.25, np.float32),
        labels={"Brainstem": 1},
    )
    assert result["Brainstem"].mean_entropy == 0.25
