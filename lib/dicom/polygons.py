"""Polygons on a lattice of pixels: filling a polygon, and the outlines of a mask.

Filling is implemented here because the available libraries do not define what happens to a pixel centre on an
edge, or decide it by the drawing direction: `skimage.draw.polygon` and Pillow count edges as inside,
`matplotlib.path` either way.

An outline runs along the edges of the pixels: it encloses exactly their area, and no pixel centre lies on it,
so that every reader gets the same pixels back, whatever its rule for edges. A region with holes is a single
polygon: a channel of zero width, drawn back and forth along pixel edges, connects the rim to each hole (the
keyhole of PS3.3 C.8.8.6.3). This preserves holes in readers that join the contours of a slice, and in readers
that use the even-odd rule.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import shapely

from lib.imaging.quantities import FloatArray, MaskArray

SNAP_VOX = 6
"""Decimals that pixel coordinates are rounded to; errors of decimal strings and matrix inverses are smaller."""

LINES_PER_VOX = 8
"""Scan lines per pixel that areas are computed with; at least `MIN_LINES` in all."""

MIN_LINES = 100
MAX_LINES = 10_000

PixelBox = tuple[slice, slice]


def fill_polygon(points_vox: FloatArray, shape_vox: tuple[int, int]) -> tuple[PixelBox, MaskArray]:
    """Return the bounding box of a closed polygon on the lattice, and the mask of its pixels in that box.

    A pixel is inside if its centre is. A centre on an edge is inside if the polygon lies on the side of larger
    x, or, on an edge along x, of larger y: polygons that share an edge share no pixel, and a channel of zero
    width, drawn back and forth, has none. If a polygon crosses itself, the even-odd rule holds.

    Args:
        points_vox: `(N, 2)`, the corners in pixel indices; the last is connected to the first.
        shape_vox: Size of the lattice; parts outside are cut off.

    Returns:
        Two slices, and a mask of their size.
    """
    start = np.round(points_vox, SNAP_VOX)
    box = _box(start, shape_vox)
    size_x, size_y = (s.stop - s.start for s in box)
    if size_x <= 0 or size_y <= 0:
        return box, np.zeros((max(size_x, 0), max(size_y, 0)), np.bool_)
    start = start - [box[0].start, box[1].start]
    stop = np.roll(start, -1, axis=0)
    # Edges go from the lower to the upper end: an edge drawn back and forth gives identical numbers.
    is_down = (start[:, 1] > stop[:, 1])[:, None]
    low, high = np.where(is_down, stop, start), np.where(is_down, start, stop)
    first = np.clip(np.ceil(low[:, 1]), 0, size_y).astype(int)
    last = np.clip(np.ceil(high[:, 1]), 0, size_y).astype(int)
    rows_of = last - first
    edge = np.repeat(np.arange(len(start)), rows_of)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows_of) - rows_of, rows_of) + first[edge]
    slope = (high[edge, 0] - low[edge, 0]) / (high[edge, 1] - low[edge, 1])
    crossing = low[edge, 0] + (row - low[edge, 1]) * slope
    column = np.clip(np.ceil(np.round(crossing, SNAP_VOX)), 0, size_x).astype(int)
    crossed = np.bincount(column * size_y + row, minlength=(size_x + 1) * size_y)
    crossed = crossed.reshape(size_x + 1, size_y)[:size_x]
    return box, np.asarray(np.cumsum(crossed, axis=0) % 2 == 1)


def enclosed_area(
    polygons: Sequence[FloatArray], shape_vox: tuple[int, int] | None = None
) -> float:
    """Return the area, in pixels, that an odd number of closed polygons enclose.

    It is summed up along scan lines, independent of pixel centres; the error is far below a percent.

    Args:
        polygons: `(N, 2)` each, the corners in pixel indices; a polygon may cross itself and others.
        shape_vox: Size of the lattice; parts outside are cut off. None: nothing is cut off.
    """
    start = np.concatenate(polygons)
    stop = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    bottom, top = float(start[:, 1].min()), float(start[:, 1].max())
    if shape_vox is not None:
        bottom, top = max(bottom, -0.5), min(top, shape_vox[1] - 0.5)
    if top <= bottom:
        return 0.0
    lines = int(min(max(LINES_PER_VOX * (top - bottom), MIN_LINES), MAX_LINES))
    step = (top - bottom) / lines
    # In units of scan lines: line i is at i.
    start_y, stop_y = ((points[:, 1] - bottom) / step - 0.5 for points in (start, stop))
    first = np.clip(np.ceil(np.minimum(start_y, stop_y)), 0, lines).astype(int)
    last = np.clip(np.ceil(np.maximum(start_y, stop_y)), 0, lines).astype(int)
    lines_of = last - first
    edge = np.repeat(np.arange(len(start)), lines_of)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(lines_of) - lines_of, lines_of) + first[edge]
    share = (line - start_y[edge]) / (stop_y[edge] - start_y[edge])
    crossing = start[edge, 0] + share * (stop[edge, 0] - start[edge, 0])
    if shape_vox is not None:
        crossing = np.clip(crossing, -0.5, shape_vox[0] - 0.5)
    crossing = crossing[np.lexsort((crossing, line))]
    return float((crossing[1::2] - crossing[::2]).sum() * step)


def perimeter(points_vox: FloatArray) -> float:
    """Return the length of a closed polygon, in pixels."""
    edges = np.roll(points_vox, -1, axis=0) - points_vox
    return float(np.hypot(edges[:, 0], edges[:, 1]).sum())


def centroid(points_vox: FloatArray) -> tuple[float, float] | None:
    """Return the centroid of a closed polygon's area; None if its area is 0."""
    middle = points_vox.mean(axis=0)
    start = points_vox - middle
    stop = np.roll(start, -1, axis=0)
    cross = start[:, 0] * stop[:, 1] - stop[:, 0] * start[:, 1]
    twice_area = float(cross.sum())
    if abs(twice_area) < 10.0**-SNAP_VOX:
        return None
    x, y = middle + ((start + stop) * cross[:, None]).sum(axis=0) / (3 * twice_area)
    return float(x), float(y)


def _box(points: FloatArray, shape_vox: tuple[int, int]) -> PixelBox:
    low = np.maximum(np.floor(points.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0)) + 1, shape_vox).astype(int)
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))


def mask_outlines(mask: MaskArray) -> list[FloatArray]:
    """Return the corners `(N, 2)`, in pixel indices, of a polygon for each region of `mask` `(X, Y)`.

    Pixels that touch at a corner only are separate regions. A polygon has at least four corners; the last is
    connected to the first. Regions are sorted by their lowest y, then x.
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
    """Return the runs of adjacent pixels in each row, as rectangles."""
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
    """Return one polygon of a rim and its holes; each hole is connected to the edge on its left."""
    ring = outer
    # From left to right: the channel of a hole meets the rim, or a hole that is already connected.
    for hole in sorted(holes, key=lambda h: tuple(h[_leftmost(h)])):
        start = _leftmost(hole)
        around = np.roll(hole, -start, axis=0)
        edge, gate = _first_to_the_left(ring, around[0])
        ring = np.vstack([ring[: edge + 1], gate, around, around[:1], gate, ring[edge + 1 :]])
    return ring


def _leftmost(ring: FloatArray) -> int:
    return int(np.lexsort((ring[:, 1], ring[:, 0]))[0])


def _first_to_the_left(ring: FloatArray, corner: FloatArray) -> tuple[int, FloatArray]:
    """Return the first vertical edge of `ring` from `corner` along -x, and the point where it is met."""
    stop = np.roll(ring, -1, axis=0)
    low, high = np.minimum(ring[:, 1], stop[:, 1]), np.maximum(ring[:, 1], stop[:, 1])
    is_candidate = (ring[:, 0] == stop[:, 0]) & (low <= corner[1]) & (corner[1] <= high)
    is_candidate &= ring[:, 0] <= corner[0]
    edge = int(np.where(is_candidate, ring[:, 0], -np.inf).argmax())
    return edge, np.array([ring[edge, 0], corner[1]])


def _without_straight_corners(ring: FloatArray) -> FloatArray:
    """Return `ring` without repeated points and without points on a straight line."""
    return np.array(list(_turns(ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)])))


def _turns(ring: FloatArray) -> Iterator[FloatArray]:
    incoming, outgoing = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    is_straight = (incoming[:, 0] * outgoing[:, 1] == incoming[:, 1] * outgoing[:, 0]) & (
        (incoming * outgoing).sum(axis=1) > 0
    )
    yield from ring[~is_straight]
