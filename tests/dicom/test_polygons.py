import numpy as np
import pytest
from matplotlib.path import Path as Outline

from lib.dicom.polygons import centroid, enclosed_area, fill_polygon, mask_outlines, perimeter
from lib.imaging.quantities import FloatArray, MaskArray

SHAPE = (30, 24)


def filled(points: FloatArray) -> MaskArray:
    mask = np.zeros(SHAPE, np.bool_)
    box, inside = fill_polygon(points, SHAPE)
    mask[box] = inside
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_a_star_is_filled_as_matplotlib_does_it(seed: int) -> None:
    # Corners at random distances around a centre that may lie outside; no pixel centre is on an edge.
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
    # A fan of triangles around (10, 10) fills the square from 5 to 15: half-open, 10 x 10 centres.
    corners = np.array(
        [(5, 5), (9, 5), (15, 5), (15, 13), (15, 15), (7, 15), (5, 15), (5, 10)], float
    )
    count = np.zeros(SHAPE, int)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        count += filled(np.array([a, b, (10, 10)]))
    expected = np.zeros(SHAPE, int)
    expected[5:15, 5:15] = 1
    np.testing.assert_array_equal(count, expected)


def test_both_loops_of_a_figure_of_eight_are_filled() -> None:
    # Two triangles that meet in (5, 5): columns 1..4 and 6..9, |y - 5| < |x - 5|.
    mask = filled(np.array([(0.5, 0.5), (9.5, 9.5), (9.5, 0.5), (0.5, 9.5)]))
    assert mask[1, 2:9].all()
    assert not mask[5, :4].any()
    assert mask[9, 2:9].all()


def test_outside_the_lattice_nothing_is_filled() -> None:
    assert not filled(np.array([(40.0, 3.0), (50.0, 3.0), (45.0, 9.0)])).any()
    assert filled(np.array([(-9.0, -9.0), (99.0, -9.0), (99.0, 99.0), (-9.0, 99.0)])).all()


def test_the_centroid_is_weighted_by_area() -> None:
    # A 2 x 2 and a 1 x 1 square side by side: ((1, 1) * 4 + (2.5, 0.5) * 1) / 5.
    shape: FloatArray = np.array([(0, 0), (3, 0), (3, 1), (2, 1), (2, 2), (0, 2)], float)
    assert centroid(shape) == pytest.approx((1.3, 0.9))
    assert centroid(shape[::-1] + 100.0) == pytest.approx((101.3, 100.9))
    assert centroid(np.array([(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)])) is None


def mask_of(*rows: str) -> MaskArray:
    """Return `(X, Y)`; a row of text is a row of pixels, `#` is inside."""
    return np.asarray(np.array([[c == "#" for c in row] for row in rows], np.bool_).T)


def area(polygon: FloatArray) -> float:
    """Return the signed area in pixels, by the shoelace formula: what a planning system computes."""
    x, y = polygon.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def as_sets(mask: MaskArray) -> list[set[tuple[float, float]]]:
    return [{(float(x), float(y)) for x, y in polygon} for polygon in mask_outlines(mask)]


def test_one_pixel_is_a_square_of_four_corners() -> None:
    (polygon,) = mask_outlines(mask_of("...", ".#.", "..."))
    assert polygon.shape == (4, 2)
    assert {tuple(p) for p in polygon.tolist()} == {(0.5, 0.5), (1.5, 0.5), (1.5, 1.5), (0.5, 1.5)}


def test_straight_edges_have_no_corners_between_their_ends() -> None:
    assert as_sets(mask_of("####", "####")) == [
        {(-0.5, -0.5), (3.5, -0.5), (3.5, 1.5), (-0.5, 1.5)}
    ]


def test_pixels_that_touch_at_a_corner_are_two_polygons() -> None:
    assert as_sets(mask_of("#.", ".#")) == [
        {(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)},
        {(0.5, 0.5), (1.5, 0.5), (1.5, 1.5), (0.5, 1.5)},
    ]


def test_a_hole_is_joined_by_a_channel_to_the_rim_on_its_left() -> None:
    (polygon,) = mask_outlines(mask_of("####", "##.#", "####"))
    points = [tuple(p) for p in polygon.tolist()]
    # From the rim, x = -0.5, to the hole's upper left corner, (1.5, 0.5), and back in line with its upper edge.
    assert points.count((-0.5, 0.5)) == 2
    assert points.count((1.5, 0.5)) == 1
    assert len(points) == 4 + 2 + 4
    assert abs(area(polygon)) == 11


def test_an_island_in_a_hole_is_a_polygon_of_its_own() -> None:
    mask = mask_of("#####", "#...#", "#.#.#", "#...#", "#####")
    assert sorted(abs(area(p)) for p in mask_outlines(mask)) == [1, 16]


def test_adjacent_holes_are_joined_to_each_other() -> None:
    (polygon,) = mask_outlines(mask_of("#######", "#.#.#.#", "#######"))
    assert abs(area(polygon)) == 21 - 3


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_any_mask_is_restored_by_both_fill_rules_with_its_area(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((13, 9)) < share
    odd, joined = np.zeros(mask.shape, np.int64), np.zeros(mask.shape, np.bool_)
    for polygon in mask_outlines(mask):
        assert len(polygon) >= 4
        assert (np.round(polygon + 0.5) == polygon + 0.5).all(), "edges follow the pixel edges"
        box, inside = fill_polygon(polygon, (13, 9))
        odd[box] += inside
        joined[box] |= inside
    np.testing.assert_array_equal(odd % 2 == 1, mask)
    np.testing.assert_array_equal(joined, mask)
    assert sum(abs(area(p)) for p in mask_outlines(mask)) == mask.sum()


# --- areas


def test_the_area_of_a_polygon_is_that_of_the_shoelace_formula() -> None:
    # A concave polygon: a square of 6 x 4 without a triangle of base 6 and height 2.
    shape: FloatArray = np.array([(1, 1), (7, 1), (7, 5), (4, 3), (1, 5)], float)
    assert enclosed_area([shape]) == pytest.approx(24 - 6)
    assert enclosed_area([shape[::-1] * 0.01]) == pytest.approx(18e-4)
    assert perimeter(np.array([(0.0, 0.0), (3.0, 0.0), (3.0, 4.0)])) == 12


def test_areas_that_two_polygons_enclose_do_not_count() -> None:
    outer = np.array([(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)])
    hole, crossing = outer * 0.5 + 1, outer + [5, 0]  # noqa: RUF005 -- adds to each corner
    assert enclosed_area([outer, hole]) == pytest.approx(100 - 25)
    assert enclosed_area([outer, crossing]) == pytest.approx(100)
    assert enclosed_area([outer, outer]) == 0
    assert enclosed_area([hole, outer, outer * 0.1 + 2]) == pytest.approx(100 - 25 + 1)


def test_areas_are_cut_at_the_rim_of_the_lattice() -> None:
    # Pixels reach from -0.5: 4 x 3 of them lie in the lattice.
    large = np.array([(-9.0, -9.0), (99.0, -9.0), (99.0, 99.0), (-9.0, 99.0)])
    assert enclosed_area([large], (4, 3)) == pytest.approx(12)
    assert enclosed_area([large + 200], (4, 3)) == 0
