import numpy as np
import pytest
from matplotlib.path import Path as Outline

from lib.dicom.polygons import centroid, fill_polygon
from lib.imaging.quantities import FloatArray, MaskArray

SHAPE = (30, 24)


def filled(points: FloatArray) -> MaskArray:
    mask = np.zeros(SHAPE, np.bool_)
    box, inside = fill_polygon(points, SHAPE)
    mask[box] = inside
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_a_star_is_filled_as_matplotlib_does_it(seed: int) -> None:
    # corners of random distance around a centre that may lie outside: no centre of a pixel is on an edge
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 40))
    radius = random.uniform(1, 12, 40)
    middle = random.uniform([-2, -2], SHAPE)
    points = middle + np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    centres = np.moveaxis(np.indices(SHAPE), 0, -1).reshape(-1, 2)
    expected = Outline([*points, points[0]]).contains_points(centres).reshape(SHAPE)
    np.testing.assert_array_equal(filled(points), expected)
    np.testing.assert_array_equal(filled(points[::-1]), expected)


def test_tiles_cover_every_pixel_once_even_where_their_edges_pass_through_centres() -> None:
    # a fan of triangles around (10, 10) fills the square from 5 to 15: half-open, 10 x 10 centres
    corners = np.array(
        [(5, 5), (9, 5), (15, 5), (15, 13), (15, 15), (7, 15), (5, 15), (5, 10)], float
    )
    count = np.zeros(SHAPE, int)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        count += filled(np.array([a, b, (10, 10)]))
    expected = np.zeros(SHAPE, int)
    expected[5:15, 5:15] = 1
    np.testing.assert_array_equal(count, expected)


def test_a_figure_of_eight_is_filled_in_both_loops() -> None:
    # two triangles that meet in (5, 5): columns 1..4 and 6..9, |y - 5| < |x - 5|
    mask = filled(np.array([(0.5, 0.5), (9.5, 9.5), (9.5, 0.5), (0.5, 9.5)]))
    assert mask[1, 2:9].all()
    assert not mask[5, :4].any()
    assert mask[9, 2:9].all()


def test_outside_the_lattice_nothing_is_filled() -> None:
    assert not filled(np.array([(40.0, 3.0), (50.0, 3.0), (45.0, 9.0)])).any()
    assert filled(np.array([(-9.0, -9.0), (99.0, -9.0), (99.0, 99.0), (-9.0, 99.0)])).all()


def test_the_centroid_is_that_of_the_area() -> None:
    # a 2 x 2 and a 1 x 1 square side by side: ((1, 1) * 4 + (2.5, 0.5) * 1) / 5
    shape: FloatArray = np.array([(0, 0), (3, 0), (3, 1), (2, 1), (2, 2), (0, 2)], float)
    assert centroid(shape) == pytest.approx((1.3, 0.9))
    assert centroid(shape[::-1] + 100.0) == pytest.approx((101.3, 100.9))
    assert centroid(np.array([(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)])) is None
