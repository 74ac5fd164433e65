"""Mapping pixels of a screenshot to organs: contours are drawn over grey, which leaves their hue unchanged."""

import colorsys

import numpy as np

from lib.imaging.quantities import FloatArray
from lib.organs.table import ORGAN_SETS, ORGANS

LEAST_SATURATION = 0.07
"""Grey has saturation 0; the palest organ over bone is slightly above this limit."""
NEAR_DEG = 15.0
"""Largest difference of hues in degrees: over grey a hue moves by up to 11, and the organs are 22 apart."""
CHOICE = tuple(ORGAN_SETS["openkbp"])


def hue_deg(rgb: FloatArray) -> FloatArray:
    """Return the hue in degrees of colours `(..., 3)` from 0 to 1; NaN if the saturation is too low."""
    flat = rgb.reshape(-1, 3)
    hues = np.full(len(flat), np.nan)
    for number, colour in enumerate(flat):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        if saturation >= LEAST_SATURATION and value > 0.1:
            hues[number] = 360 * hue
    return hues.reshape(rgb.shape[:-1])


def organ_hue_deg(name: str) -> float:
    """Return the hue of an organ in the organ table."""
    return float(hue_deg(np.array(ORGANS[name].colour_rgb, float)[None] / 255)[0])


def has_hue_of(
    name: str, picture: FloatArray, at: FloatArray
) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return for positions `(N, 2)` in a picture, in pixels, whether an organ's colour is nearest to theirs.

    The colour of a position is the median of 3 x 3 pixels.
    """
    hues = hue_deg(medians(picture, at))
    apart = np.array([np.abs(hues - organ_hue_deg(organ)) for organ in CHOICE])
    apart = np.minimum(apart, 360 - apart)
    own = apart[CHOICE.index(name)]
    return np.asarray((own <= NEAR_DEG) & (own <= apart.min(axis=0)))


def is_grey(picture: FloatArray, at: FloatArray) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return for positions in a picture whether they have no colour."""
    return np.asarray(np.isnan(hue_deg(medians(picture, at))))


def is_inside(picture: FloatArray, at: FloatArray) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return for positions whether they and their 3 x 3 pixels are inside the picture."""
    height, width, _ = picture.shape
    rounded = np.rint(at)
    return np.asarray(((rounded >= 1) & (rounded < [width - 1, height - 1])).all(axis=1))


def medians(picture: FloatArray, at: FloatArray) -> FloatArray:
    """Return the median colour of the 3 x 3 pixels around each position."""
    assert is_inside(picture, at).all(), "a position is outside the picture"
    assert len(at), "no position is inside the picture"
    return np.array(
        [
            np.median(picture[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3), axis=0)
            for x, y in np.rint(at).astype(int)
        ]
    )
