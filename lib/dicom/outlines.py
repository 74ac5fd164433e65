"""The outlines of a mask: closed polygons along the edges of its pixels.

An outline encloses exactly the pixels' area, and no centre of a pixel lies on it: whatever rule a reader has
for the rim, the same pixels come back. A part with holes is one polygon all the same: a channel of no width,
drawn there and back along pixel edges, leads from the rim to each hole (the keyhole of PS3.3 C.8.8.6.3). So
holes survive in readers that join a slice's contours and in those that take an odd number of them as inside.
"""

from collections.abc import Iterator

import numpy as np
import shapely

from lib.imaging.quantities import FloatArray, MaskArray


def outlines(mask: MaskArray) -> list[FloatArray]:
    """Return the corners `(N, 2)`, in pixel indices, of a polygon for each part of `mask` `(X, Y)`.

    Pixels that touch at a corner only are two parts. A polygon has at least four corners; its last is joined
    to its first. The part with the lowest y, then x, comes first.
    """
    parts = shapely.orient_polygons(shapely.get_parts(shapely.union_all(_runs(mask))))
    polygons = [
        _without_straight_corners(
            _keyholed(_corners(part.exterior), [_corners(hole) for hole in part.interiors])
        )
        for part in parts
    ]
    return sorted(polygons, key=lambda p: (float(p[:, 1].min()), float(p[:, 0].min())))


def _runs(mask: MaskArray) -> "np.ndarray[tuple[int, ...], np.dtype[np.object_]]":
    """Return the rows of touching pixels as rectangles."""
    rows = np.flatnonzero(mask.any(axis=0))
    padded = np.zeros((len(rows), mask.shape[0] + 2), np.int8)
    padded[:, 1:-1] = mask[:, rows].T
    change = np.diff(padded, axis=1)
    row, first = np.nonzero(change == 1)
    _, after = np.nonzero(change == -1)
    y = rows[row]
    boxes: np.ndarray[tuple[int, ...], np.dtype[np.object_]] = shapely.box(
        first - 0.5, y - 0.5, after - 0.5, y + 0.5
    )
    return boxes


def _corners(ring: object) -> FloatArray:
    return np.asarray(_without_straight_corners(shapely.get_coordinates(ring)[:-1]))


def _keyholed(outer: FloatArray, holes: list[FloatArray]) -> FloatArray:
    """Return one polygon of a rim and its holes, each hole joined to what lies left of it."""
    ring = outer
    # From left to right: what a hole's channel meets is the rim, or a hole that was joined before.
    for hole in sorted(holes, key=lambda h: tuple(h[_leftmost(h)])):
        start = _leftmost(hole)
        around = np.roll(hole, -start, axis=0)
        edge, gate = _first_to_the_left(ring, around[0])
        ring = np.vstack([ring[: edge + 1], gate, around, around[:1], gate, ring[edge + 1 :]])
    return ring


def _leftmost(ring: FloatArray) -> int:
    return int(np.lexsort((ring[:, 1], ring[:, 0]))[0])


def _first_to_the_left(ring: FloatArray, corner: FloatArray) -> tuple[int, FloatArray]:
    """Return the upright edge of `ring` that `corner` sees along -x, and the point that it sees of it."""
    stop = np.roll(ring, -1, axis=0)
    low, high = np.minimum(ring[:, 1], stop[:, 1]), np.maximum(ring[:, 1], stop[:, 1])
    is_seen = (ring[:, 0] == stop[:, 0]) & (low <= corner[1]) & (corner[1] <= high)
    is_seen &= ring[:, 0] <= corner[0]
    edge = int(np.where(is_seen, ring[:, 0], -np.inf).argmax())
    return edge, np.array([ring[edge, 0], corner[1]])


def _without_straight_corners(ring: FloatArray) -> FloatArray:
    """Return `ring` without points that repeat the one before, and without those on a straight line on."""
    return np.array(list(_turns(ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)])))


def _turns(ring: FloatArray) -> Iterator[FloatArray]:
    came, goes = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    is_straight = (came[:, 0] * goes[:, 1] == came[:, 1] * goes[:, 0]) & (
        (came * goes).sum(axis=1) > 0
    )
    yield from ring[~is_straight]
