import numpy as np
import pytest

from lib.errors import GeometryError
from lib.imaging.geometry import (
    Grid,
    from_sitk,
    ras_to_lps,
    reordered_onto,
    require_right_angles,
    require_same_grid,
    to_sitk,
)
from tests.phantoms import (
    MARK_RAS_MM,
    MARK_VOX,
    ORIENTATIONS,
    make_ct,
    make_grid,
    make_oblique_ct,
    mark_ras_mm,
    stored_as,
)


def moved(grid: Grid, offset_mm: float) -> Grid:
    affine = grid.affine_ras
    affine[0, 3] += offset_mm
    return Grid.from_affine(grid.shape_vox, affine)


def test_ras_to_lps_negates_x_and_y_and_is_its_own_inverse() -> None:
    affine = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [0, 0, 0, 1.0]])
    expected = [[-1, -2, -3, -4], [-5, -6, -7, -8], [9, 10, 11, 12], [0, 0, 0, 1]]
    np.testing.assert_array_equal(ras_to_lps(affine), expected)
    np.testing.assert_array_equal(ras_to_lps(ras_to_lps(affine)), affine)


def test_spacing_and_voxel_volume_do_not_depend_on_direction() -> None:
    for ct in (make_ct(), make_oblique_ct()):
        np.testing.assert_allclose(ct.grid.spacing_mm, (1.5, 2.0, 3.0))
        assert ct.grid.voxel_ml == pytest.approx(0.009)


def test_corners_are_the_outermost_voxel_centres() -> None:
    corners = make_grid().corners_ras()
    assert corners.shape == (8, 3)
    # LPS x from -10.25 to -10.25 + 19 * 1.5 = 18.25, y from -35.5 to -5.5, z from 120.75 to 153.75
    np.testing.assert_allclose(corners.min(axis=0), (-18.25, 5.5, 120.75))
    np.testing.assert_allclose(corners.max(axis=0), (10.25, 35.5, 153.75))


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_the_mark_is_at_the_same_position_in_every_storage_order(
    order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    ct = stored_as(make_ct(), order, flips)
    np.testing.assert_allclose(mark_ras_mm(ct), MARK_RAS_MM)
    image = to_sitk(ct.array_hu, ct.grid)
    assert Grid.of_sitk(image).is_same_as(ct.grid)
    np.testing.assert_array_equal(from_sitk(image), ct.array_hu)


def test_sitk_has_the_mark_at_the_same_position_in_lps() -> None:
    ct = make_oblique_ct()
    x, y, z = to_sitk(ct.array_hu, ct.grid).TransformIndexToPhysicalPoint(MARK_VOX)
    np.testing.assert_allclose((-x, -y, z), mark_ras_mm(ct))


@pytest.mark.parametrize(("offset_mm", "is_same"), [(0.0, True), (0.009, True), (0.011, False)])
def test_grids_are_the_same_up_to_a_hundredth_of_a_millimetre(
    *, offset_mm: float, is_same: bool
) -> None:
    assert make_grid().is_same_as(moved(make_grid(), offset_mm)) is is_same


def test_grids_of_different_shape_are_not_the_same() -> None:
    assert not make_grid().is_same_as(make_grid((20, 16, 13)))


def test_a_label_on_another_grid_is_refused_and_both_are_named() -> None:
    grid = make_grid()
    require_same_grid("case7", label=grid, image=grid)
    with pytest.raises(GeometryError, match=r"case7: the label lies on 20 x 16 x 12 voxels of 1.5"):
        require_same_grid("case7", label=moved(grid, 1.0), image=grid)


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS[::7])
def test_right_angles_are_accepted_in_any_direction(
    order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    require_right_angles("case7", stored_as(make_oblique_ct(), order, flips).grid)


def test_a_sheared_grid_is_refused() -> None:
    affine = make_grid().affine_ras
    affine[1, 2] = 0.003  # 11 steps: 0.033 mm, half of it after the nearest upright grid is taken
    require_right_angles("case7", Grid.from_affine((20, 16, 12), affine))
    affine[1, 2] = 0.3
    with pytest.raises(GeometryError, match=r"case7: .*not at right angles"):
        require_right_angles("case7", Grid.from_affine((20, 16, 12), affine))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_flat_or_undefined_grid_is_refused(value: float) -> None:
    affine = make_grid().affine_ras
    affine[:3, 2] = value
    with pytest.raises(GeometryError, match=r"three positive numbers expected"):
        require_right_angles("case7", Grid.from_affine((20, 16, 12), affine))


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_a_label_is_reordered_to_the_axes_of_its_scan(
    order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    scan = make_oblique_ct()
    other = stored_as(scan, order, flips)
    turned = reordered_onto(other.array_hu, other.grid, scan.grid, image_id="case7")
    np.testing.assert_array_equal(turned, scan.array_hu)


def test_a_label_half_a_voxel_away_is_refused() -> None:
    scan, other = make_oblique_ct(), stored_as(make_oblique_ct(), (2, 0, 1), (True, False, False))
    affine = other.grid.affine_ras
    affine[:3, 3] += affine[:3, 1] / 2
    moved = Grid.from_affine(other.grid.shape_vox, affine)
    with pytest.raises(GeometryError, match="case7: the label lies on 12 x 20 x 16 voxels"):
        reordered_onto(other.array_hu, moved, scan.grid, image_id="case7")
