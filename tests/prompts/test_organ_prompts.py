import numpy as np
import pytest

from lib.errors import ConfigError
from lib.prompts.organ_prompts import MAX_PROMPTS, DrawnMask, require_prompts, voxel_at
from lib.prompts.refinement import Prompt
from tests.phantoms import (
    MARK_RAS_MM,
    MARK_VOX,
    ORIENTATIONS,
    make_ct,
    make_grid,
    make_oblique_ct,
    stored_as,
)


def test_a_position_in_lps_is_the_voxel_that_contains_it() -> None:
    x, y, z = MARK_RAS_MM
    assert tuple(voxel_at(make_grid(), (-x, -y, z))) == MARK_VOX
    # Voxels measure 1.5 x 2 x 3 mm.
    assert tuple(voxel_at(make_grid(), (-x + 0.7, -y - 0.9, z + 1.4))) == MARK_VOX
    assert tuple(voxel_at(make_grid(), (-x + 0.8, -y, z))) == (MARK_VOX[0] + 1, *MARK_VOX[1:])


@pytest.mark.parametrize("number", [0, 11, 26, 47])
def test_the_voxel_is_found_in_every_storage_order(number: int) -> None:
    x, y, z = MARK_RAS_MM
    ct = stored_as(make_ct(), *ORIENTATIONS[number])
    assert ct.array_hu[tuple(voxel_at(ct.grid, (-x, -y, z)))] == 1500


def test_the_voxel_is_found_in_an_oblique_scan() -> None:
    ct = make_oblique_ct()
    lps = np.diag([-1, -1, 1, 1]) @ ct.grid.affine_ras @ np.array([*MARK_VOX, 1])
    assert tuple(voxel_at(ct.grid, lps[:3])) == MARK_VOX


def test_a_position_far_away_is_outside() -> None:
    prompts = [Prompt(voxel_at(make_grid(), (1e300, 0, 0))[None], is_add=True)]
    with pytest.raises(ConfigError, match=r"scan_1: click or scribble 1 is at voxel .*outside"):
        require_prompts(prompts, make_grid(), image_id="scan_1")


@pytest.mark.parametrize("voxel", [(-1, 0, 0), (0, 16, 0), (0, 0, 12)])
def test_a_click_next_to_the_scan_is_refused(voxel: tuple[int, int, int]) -> None:
    inside = Prompt(np.array([[19, 15, 11]]), is_add=True)
    require_prompts([inside], make_grid(), image_id="scan_1")
    with pytest.raises(ConfigError, match=r"2 is at voxel .* outside of the scan of 20 x 16 x 12"):
        require_prompts(
            [inside, Prompt(np.array([voxel]), is_add=True)], make_grid(), image_id="scan_1"
        )


def test_too_many_prompts_are_refused() -> None:
    prompt = Prompt(np.array([[1, 1, 1]]), is_add=True)
    require_prompts([prompt] * MAX_PROMPTS, make_grid(), image_id="scan_1")
    with pytest.raises(ConfigError, match=r"101 clicks and scribbles.* at most 100"):
        require_prompts([prompt] * (MAX_PROMPTS + 1), make_grid(), image_id="scan_1")
    line = Prompt(np.ones((100_001, 3), np.intp), is_add=True)
    with pytest.raises(ConfigError, match="scribbles have 100001 voxels"):
        require_prompts([line], make_grid(), image_id="scan_1")


def test_a_drawn_mask_is_seen_from_another_box() -> None:
    mask = np.ones((3, 2, 2), bool)
    mask[0, 0, 0] = False
    drawn = DrawnMask((slice(4, 7), slice(5, 7), slice(6, 8)), mask)
    seen = drawn.within((slice(3, 6), slice(5, 9), slice(7, 9)))
    expected = np.zeros((3, 4, 2), bool)
    # Voxels 4 and 5 along x, 5 and 6 along y, 7 along z are in both boxes.
    expected[1:3, 0:2, 0] = True
    np.testing.assert_array_equal(seen, expected)
    assert not drawn.within((slice(0, 4), slice(5, 7), slice(6, 8))).any()
