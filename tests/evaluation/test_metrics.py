import math
import warnings

import numpy as np
import pytest
import surface_distance as deepmind
from scipy import ndimage

from lib.evaluation.metrics import agreement, dice, organ_dice, surface_distances
from lib.imaging.quantities import MaskArray, SpacingMm

ANISOTROPIC_MM: SpacingMm = (0.98, 1.01, 2.5)
SHAPE = (24, 22, 16)


def box(start: int, stop: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    mask = np.zeros((20, 4, 4), dtype=bool)
    mask[start:stop] = True
    return mask


def cuboid(start: tuple[int, int, int], size: tuple[int, int, int] = (6, 5, 4)) -> MaskArray:
    mask = np.zeros(SHAPE, bool)
    x, y, z = (slice(a, a + n) for a, n in zip(start, size, strict=True))
    mask[x, y, z] = True
    return mask


def blob(seed: int, shape: tuple[int, int, int] = (30, 28, 18)) -> MaskArray:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, (3, 3, 1.5))
    return np.asarray(smooth > np.quantile(smooth, 0.8))


def test_dice_of_equal_masks_is_one() -> None:
    assert dice(box(2, 10), box(2, 10)) == 1.0


def test_dice_of_a_box_shifted_by_a_quarter_of_its_length() -> None:
    assert dice(box(2, 10), box(4, 12)) == pytest.approx(0.75)


def test_dice_is_zero_when_one_is_empty_and_nan_when_both_are() -> None:
    assert dice(box(2, 10), box(0, 0)) == 0.0
    assert math.isnan(dice(box(0, 0), box(0, 0)))


def test_an_organ_missing_from_the_reference_is_left_out() -> None:
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[:2] = 1
    prediction = reference.copy()
    prediction[3] = 2
    assert organ_dice(reference, prediction, {"Brainstem": 1, "SpinalCord": 2}) == {
        "Brainstem": 1.0
    }


def test_equal_masks_agree_everywhere() -> None:
    mask = cuboid((4, 4, 4))
    result = agreement(mask, mask, spacing_mm=ANISOTROPIC_MM, tolerance_mm=1.0)
    assert (result.dsc, result.hd95_mm, result.surface_dsc, result.msd_mm) == (1, 0, 1, 0)


@pytest.mark.parametrize(
    ("axis", "steps", "apart_mm"), [(0, 8, 7.84), (1, 9, 9.09), (2, 6, 15.0), (2, 5, 12.5)]
)
def test_flat_plates_lie_as_far_apart_as_they_were_moved(
    axis: int, steps: int, apart_mm: float
) -> None:
    # Plates of one voxel, so large that their rims weigh little: every place of one lies straight across from
    # one of the other, `steps` voxels of that axis away, less the one voxel between a plate's two faces.
    size = [20, 20, 14]
    size[axis] = 1
    start, moved = [2, 1, 1], [2, 1, 1]
    moved[axis] += steps
    first, second = (
        cuboid((s[0], s[1], s[2]), (size[0], size[1], size[2])) for s in (start, moved)
    )
    result = agreement(first, second, spacing_mm=ANISOTROPIC_MM, tolerance_mm=apart_mm)
    assert result.dsc == 0
    assert result.hd95_mm == pytest.approx(apart_mm)
    assert result.surface_dsc == 1.0
    assert apart_mm - ANISOTROPIC_MM[axis] <= result.msd_mm <= apart_mm


def test_two_voxels_lie_as_far_apart_as_their_centres() -> None:
    # The example of the surface-distance package: each corner's nearest is 2 mm or 1 mm away.
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[10, 10, 8] = second[12, 10, 8] = True
    result = agreement(first, second, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=1.0)
    assert result.msd_mm == pytest.approx(1.5)
    assert result.hd95_mm == pytest.approx(2.0)
    assert result.surface_dsc == pytest.approx(0.5)


def test_a_distance_of_exactly_the_tolerance_agrees_wherever_it_lies() -> None:
    for z in range(2, 9):
        first, second = cuboid((3, 3, z), (15, 15, 3)), cuboid((3, 3, z + 1), (15, 15, 3))
        result = agreement(first, second, spacing_mm=ANISOTROPIC_MM, tolerance_mm=2.5)
        assert result.surface_dsc == 1.0


def test_a_missed_organ_has_no_overlap_and_no_distance() -> None:
    result = agreement(
        cuboid((4, 4, 4)), np.zeros(SHAPE, bool), spacing_mm=ANISOTROPIC_MM, tolerance_mm=1.0
    )
    assert (result.dsc, result.surface_dsc) == (0.0, 0.0)
    assert math.isnan(result.hd95_mm)
    assert math.isnan(result.msd_mm)


@pytest.mark.parametrize("prediction", [np.zeros(SHAPE, bool), cuboid((4, 4, 4))])
def test_without_a_reference_every_number_is_nan(prediction: MaskArray) -> None:
    result = agreement(
        np.zeros(SHAPE, bool), prediction, spacing_mm=ANISOTROPIC_MM, tolerance_mm=1.0
    )
    for value in (result.dsc, result.hd95_mm, result.surface_dsc, result.msd_mm):
        assert math.isnan(value)


@pytest.mark.parametrize("spacing_mm", [ANISOTROPIC_MM, (1.0, 1.0, 1.0), (2.5, 0.7, 1.25)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_surfaces_agree_with_the_surface_distance_package(seed: int, spacing_mm: SpacingMm) -> None:
    first, second = blob(seed), blob(seed + 100)
    with warnings.catch_warnings():
        # The package calls SciPy by names that SciPy is about to drop, the reason for our own search.
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = deepmind.compute_surface_distances(first, second, spacing_mm)
    actual = surface_distances(first, second, spacing_mm=spacing_mm)
    assert expected.keys() == actual.keys()
    for key in ("distances_gt_to_pred", "distances_pred_to_gt"):
        np.testing.assert_allclose(actual[key], expected[key], atol=1e-9)
    for tolerance_mm in (1.01, 2.5):
        result = agreement(first, second, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
        assert result.hd95_mm == pytest.approx(
            deepmind.compute_robust_hausdorff(expected, 95), abs=1e-6
        )
        assert result.surface_dsc == pytest.approx(
            deepmind.compute_surface_dice_at_tolerance(expected, tolerance_mm), abs=1e-6
        )
        assert result.msd_mm == pytest.approx(
            np.mean(deepmind.compute_average_surface_distance(expected)), abs=1e-6
        )


def test_an_organ_at_the_edge_of_the_volume_is_closed_there() -> None:
    inside = agreement(
        cuboid((4, 4, 4)), cuboid((6, 4, 4)), spacing_mm=ANISOTROPIC_MM, tolerance_mm=1.0
    )
    edge = agreement(
        cuboid((0, 0, 0)), cuboid((2, 0, 0)), spacing_mm=ANISOTROPIC_MM, tolerance_mm=1.0
    )
    assert edge == inside
