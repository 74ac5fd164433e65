from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from lib.recipes.schema import AugmentConfig
from lib.training.metal import add_fillings, teeth

SPACING_MM = (2.0, 2.0, 2.5)
SURE = replace(AugmentConfig(), metal_probability=1.0)


def jaw_and_teeth() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return HU and jaw, y to the front; body of the jaw at z 8 to 11 with teeth up to 15, rami up to 27.

    A vertebra behind the jaw has the same HU.
    """
    hu = np.full((60, 60, 32), 40, np.float32)
    jaw = np.zeros(hu.shape, bool)
    jaw[15:45, 36:50, 8:12] = True
    jaw[18:42, 20:44, 8:12] = False
    jaw[[15, 16, 43, 44], 22:26, 8:28] = True
    hu[jaw] = 1000
    hu[15:45, 44:50, 12:16] = 1600
    hu[25:35, 5:12] = 1000
    return hu, jaw


def test_teeth_are_at_the_front_of_the_jaw_and_not_on_its_rami() -> None:
    hu, jaw = jaw_and_teeth()
    coordinates = np.argwhere(teeth(hu, jaw, SPACING_MM))
    # From 6 mm below the top of the jaw's body, slice 11, to 14 mm above it.
    assert (coordinates[:, 2].min(), coordinates[:, 2].max()) == (9, 15)
    # 45 mm behind the chin, slice 49.
    assert coordinates[:, 1].min() >= 49 - 22
    assert len(coordinates) > 100


@pytest.mark.parametrize("seed", range(8))
def test_metal_is_in_teeth_with_bright_and_dark_streaks_about_it(seed: int) -> None:
    hu, jaw = jaw_and_teeth()
    before = hu.copy()
    filled = add_fillings(hu, jaw, SPACING_MM, np.random.default_rng(seed), SURE)
    np.testing.assert_array_equal(hu, before)
    metal = filled > 3000
    assert metal.any()
    assert metal.sum() * np.prod(SPACING_MM) < 4 * 4 / 3 * np.pi * 6**3
    near = np.argwhere(metal)
    assert near[:, 1].min() > 20
    assert near[:, 2].min() >= 6
    assert near[:, 2].max() <= 18
    soft = (before == 40) & ~(filled > 1500)
    difference = (filled - before)[soft]
    assert difference.max() > 40
    assert difference.min() < -40
    # Only its own slices and their neighbours.
    np.testing.assert_array_equal(
        filled[:, :, [0, 1, 24, 25, 31]], before[:, :, [0, 1, 24, 25, 31]]
    )


def test_streaks_weaken_with_the_distance_and_with_their_setting() -> None:
    hu, jaw = jaw_and_teeth()
    weak = replace(SURE, metal_streak_hu=0.0, metal_fillings=1)
    strong = replace(weak, metal_streak_hu=400.0)
    for seed in range(4):
        ball = add_fillings(hu, jaw, SPACING_MM, np.random.default_rng(seed), weak)
        streaks = add_fillings(hu, jaw, SPACING_MM, np.random.default_rng(seed), strong) - ball
        x, y, z = np.argwhere(ball > 3000).mean(axis=0)
        positions_mm = np.indices(hu.shape[:2]) * 2.0
        distance_mm = np.hypot(positions_mm[0] - 2 * x, positions_mm[1] - 2 * y)
        plane = np.abs(streaks[:, :, round(z)])
        assert plane[distance_mm > 20].max() <= 401
        assert plane[distance_mm < 15].mean() > plane[distance_mm > 40].mean()


def test_a_crop_without_teeth_gets_no_metal() -> None:
    hu, jaw = jaw_and_teeth()
    rng = np.random.default_rng
    air = np.full_like(hu, -1000)
    assert add_fillings(air, None, SPACING_MM, rng(0), SURE) is air
    assert add_fillings(air, jaw, SPACING_MM, rng(0), SURE) is air
    # The jaw is contoured, but not in this crop: the hard tissue here is something else.
    assert add_fillings(hu, np.zeros_like(jaw), SPACING_MM, rng(0), SURE) is hu
    never = replace(SURE, metal_probability=0.0)
    assert add_fillings(hu, jaw, SPACING_MM, rng(0), never) is hu


def test_enamel_marks_teeth_when_the_jaw_is_not_contoured() -> None:
    hu, _ = jaw_and_teeth()
    teeth_mask = teeth(hu, None, SPACING_MM)
    assert teeth_mask.any()
    assert (hu[teeth_mask] == 1600).all()
    assert teeth_mask[:, :44].sum() == 0


@pytest.mark.parametrize("height", [0, 30])
def test_a_jaw_at_the_edge_of_the_crop_is_no_error(height: int) -> None:
    hu = np.full((20, 20, 32), 40, np.float32)
    jaw = np.zeros(hu.shape, bool)
    jaw[0:2, 18:20, height : height + 2] = True
    hu[jaw] = 1200
    filled = add_fillings(hu, jaw, SPACING_MM, np.random.default_rng(0), SURE)
    assert (filled > 3000).any()
