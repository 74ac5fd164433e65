"""Filling polygons on a lattice of pixels, by the even-odd rule.

Written here because the libraries at hand do not say what they do with a centre on an edge, or decide it by
the direction of drawing: `skimage.draw.polygon` and Pillow count edges in, `matplotlib.path` either way.
"""

import numpy as np

from lib.imaging.quantities import FloatArray, MaskArray

SNAP_VOX = 6
"""Decimals of a pixel that count; what is left of decimal strings and matrix inverses is beyond them."""

PixelBox = tuple[slice, slice]


def fill_polygon(points_vox: FloatArray, shape_vox: tuple[int, int]) -> tuple[PixelBox, MaskArray]:
    """Return the part of the lattice that a closed polygon reaches, and the pixels inside it there.

    A pixel is inside where its centre is. A centre on an edge is inside where the polygon lies on the side of
    larger x, or, on an edge along x, of larger y: polygons that share an edge share no pixel, and a channel
    of no width, drawn there and back, has none. Where a polygon crosses itself, even-odd holds.

    Args:
        points_vox: `(N, 2)`, the corners in pixel indices; the last is joined to the first.
        shape_vox: Size of the lattice; what lies outside is cut off.

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
    # An edge drawn there and one drawn back are one line to the last bit: from its lower end to its upper.
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


def centroid(points_vox: FloatArray) -> tuple[float, float] | None:
    """Return the centre of a closed polygon's area, None where it encloses none."""
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
