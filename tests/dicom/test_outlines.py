"""Outlines of small masks, worked out by hand, and of random ones, filled again."""

import numpy as np
import pytest

from lib.dicom.polygons import fill_polygon, mask_outlines
from lib.imaging.quantities import FloatArray, MaskArray


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


def test_straight_edges_have_no_corners_between() -> None:
    assert as_sets(mask_of("####", "####")) == [
        {(-0.5, -0.5), (3.5, -0.5), (3.5, 1.5), (-0.5, 1.5)}
    ]


def test_pixels_that_touch_at_a_corner_are_two_polygons() -> None:
    assert as_sets(mask_of("#.", ".#")) == [
        {(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)},
        {(0.5, 0.5), (1.5, 0.5), (1.5, 1.5), (0.5, 1.5)},
    ]


def test_a_hole_is_reached_by_a_channel_from_the_rim_on_its_left() -> None:
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


def test_holes_side_by_side_are_joined_one_to_the_other() -> None:
    (polygon,) = mask_outlines(mask_of("#######", "#.#.#.#", "#######"))
    assert abs(area(polygon)) == 21 - 3


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_any_mask_comes_back_by_both_rules_and_with_its_area(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((13, 9)) < share
    odd, joined = np.zeros(mask.shape, np.int64), np.zeros(mask.shape, np.bool_)
    for polygon in mask_outlines(mask):
        assert len(polygon) >= 4
        assert (np.round(polygon + 0.5) == polygon + 0.5).all(), "along the pixels' edges"
        box, inside = fill_polygon(polygon, (13, 9))
        odd[box] += inside
        joined[box] |= inside
    np.testing.assert_array_equal(odd % 2 == 1, mask)
    np.testing.assert_array_equal(joined, mask)
    assert sum(abs(area(p)) for p in mask_outlines(mask)) == mask.sum()
