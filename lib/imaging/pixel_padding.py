"""Padding of CT slices: pixels outside the reconstruction circle (PS3.3 C.7.5.1.1.2).

PixelPaddingValue and PixelPaddingRangeLimit are stored values, before rescale. Padding makes an image
rectangular, so it reaches a corner of the slice. Some scanners name a value that tissue has as well, most often
0 with an intercept of 0: such pixels are padding only where they reach a corner.
"""

import functools
import logging
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from lib.imaging.dicom_files import PARSING_ERRORS

PADDING_HU = -1024
"""HU value of voxels outside the reconstruction circle."""

_KEYWORDS = ("PixelPaddingValue", "PixelPaddingRangeLimit")

AIR_HU = -1000
LOWEST_TISSUE_HU = -200
"""Fat has about -100 HU."""

Array = np.ndarray[Any, np.dtype[Any]]

_log = logging.getLogger(__name__)


def replace_padding(
    hu_yx: Array,
    values_yx: Array,
    raw_yx: Array,
    header: Dataset,
    *,
    rescale: tuple[float, float],
    image_id: str,
) -> Array:
    """Return a slice in HU with its padding at -1024.

    Args:
        hu_yx: `(Y, X)`, HU.
        values_yx: The stored values of the same pixels.
        raw_yx: All bits of the same pixels: some writers pad with a value that BitsStored cannot hold.
        header: Header of the slice.
        rescale: Slope and intercept.
        image_id: For messages.
    """
    bounds = [_padding_value(header, keyword, values_yx.dtype, image_id) for keyword in _KEYWORDS]
    if bounds[0] is None:
        return hu_yx
    given = [value for value in bounds if value is not None]
    low, high = min(given), max(given)
    is_padding = (low <= values_yx) & (values_yx <= high) | (low <= raw_yx) & (raw_yx <= high)
    slope, intercept = rescale
    highest_hu = high * slope + intercept
    if highest_hu > AIR_HU:
        if low != high and highest_hu > LOWEST_TISSUE_HU:
            tissue = f"{low * slope + intercept:g} to {highest_hu:g} HU would be padding"
            _log_ignored(image_id, "PixelPaddingRangeLimit", tissue)
            return hu_yx
        is_padding = _reaching_a_corner(is_padding)
    return np.where(is_padding, np.asarray(PADDING_HU, hu_yx.dtype), hu_yx)


def _reaching_a_corner(mask_yx: Array) -> Array:
    """Return the part of a mask that is connected to a corner of the slice."""
    from scipy import ndimage  # slow to import

    pieces, _ = ndimage.label(mask_yx)
    corners = {int(pieces[y, x]) for y in (0, -1) for x in (0, -1)} - {0}
    return np.isin(pieces, list(corners))


def _padding_value(
    header: Dataset, keyword: str, dtype: "np.dtype[Any]", image_id: str
) -> int | None:
    """Return a padding value as a stored value; None if there is none, or its meaning is not clear.

    Some writers store a negative value with VR US, or bytes with VR OW, or the value twice.
    """
    if keyword not in header:
        return None
    try:
        value = header[keyword].value
        if isinstance(value, bytes):
            value = int.from_bytes(value, "little") if len(value) in (1, 2, 4) else None
        found: set[int] = {
            int(v) for v in ([value] if isinstance(value, str | float | int) else value)
        }
        (number,) = found
    except PARSING_ERRORS:
        _log_ignored(image_id, keyword, "a single number expected")
        return None
    size: int = 2 ** (8 * dtype.itemsize)
    stored: int = number % size
    is_negative = dtype.kind == "i" and stored >= size // 2
    return stored - size if is_negative else stored


@functools.lru_cache(maxsize=64)
def _log_ignored(image_id: str, keyword: str, reason: str) -> None:
    """Log once, not for every slice."""
    _log.info("%s: %s was ignored: %s", image_id, keyword, reason)
