import pytest

from lib.networks.peers import plan_unet
from lib.recipes.schema import OPENKBP, PDDCA


def test_openkbp_pools_every_axis_until_six_voxels_are_left() -> None:
    # 3.906 mm is 1.6 times 2.5 mm: all axes together. 48 -> 24 -> 12 -> 6, and 6 is less than twice 4.
    plan = plan_unet(OPENKBP.crop_vox, OPENKBP.spacing_mm)
    assert plan.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan.kernels == ((3, 3, 3),) * 4
    assert plan.divisor == (8, 8, 8)
    assert plan.channels(32) == [32, 64, 128, 256]


def test_pddca_leaves_z_alone_until_the_voxels_are_less_than_twice_as_deep_as_wide() -> None:
    # 0.8, 0.8, 2.5 mm: z is 3.1 times x, so in the plane first; at 1.6 mm z is 1.6 times x, and all pool:
    # (256, 256, 48) -> (128, 128, 48) -> (64, 64, 24) -> (32, 32, 12) -> (16, 16, 6). Then z has 6 voxels,
    # less than twice 4: x and y alone, -> (8, 8, 6) -> (4, 4, 6).
    plan = plan_unet(PDDCA.crop_vox, PDDCA.spacing_mm)
    in_plane, every = (2, 2, 1), (2, 2, 2)
    assert plan.strides == ((1, 1, 1), in_plane, every, every, every, in_plane, in_plane)
    assert plan.kernels == ((3, 3, 1), *((3, 3, 3),) * 6)
    assert plan.divisor == (64, 64, 8)
    assert plan.channels(32) == [32, 64, 128, 256, 320, 320, 320]


def test_an_odd_size_is_halved_upwards() -> None:
    # 15 -> 8 -> 4, as a padded volume is.
    assert plan_unet((15, 15, 15), (1.0, 1.0, 1.0)).divisor == (4, 4, 4)


@pytest.mark.parametrize(("size_x", "divisor_x"), [(11, 1), (12, 2)])
def test_one_axis_alone_is_pooled_only_while_it_keeps_six_voxels(
    size_x: int, divisor_x: int
) -> None:
    assert plan_unet((size_x, 7, 7), (1.0, 1.0, 1.0)).divisor == (divisor_x, 1, 1)


def test_voxels_of_exactly_twice_the_finest_are_not_pooled() -> None:
    plan = plan_unet((64, 64, 64), (1.0, 1.0, 2.0))
    assert plan.strides[1] == (2, 2, 1)
    assert plan.kernels[0] == (3, 3, 1)


def test_the_deepest_level_sees_every_axis() -> None:
    plan = plan_unet((16, 16, 8), (1.0, 1.0, 20.0))
    assert plan.kernels == ((3, 3, 1), (3, 3, 1), (3, 3, 3))


def test_a_width_above_the_largest_channels_is_kept() -> None:
    assert plan_unet((16, 16, 16), (1.0, 1.0, 1.0)).channels(400) == [400, 400, 400]
