"""Which organ's colour a pixel of a screenshot has: contours are drawn over grey, which leaves their hue."""

import colorsys

import numpy as np

from lib.imaging.quantities import FloatArray
from lib.organs.table import ORGAN_SETS, ORGANS

LEAST_SATURATION = 0.07
"""Grey has none; the palest organ, over bone, has a little more."""
NEAR_DEG = 15.0
"""Drawn over grey, a hue moves by up to 11 degrees; the nearest two of the seven organs' are 22 apart."""
CHOICE = tuple(ORGAN_SETS["openkbp"])


def hue_deg(rgb: FloatArray) -> FloatArray:
    """Return the hue of colours `(..., 3)` from 0 to 1, in degrees; NaN where there is none to speak of."""
    flat = rgb.reshape(-1, 3)
    found = np.full(len(flat), np.nan)
    for number, colour in enumerate(flat):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        if saturation >= LEAST_SATURATION and value > 0.1:
            found[number] = 360 * hue
    return found.reshape(rgb.shape[:-1])


def organ_hue_deg(name: str) -> float:
    """Return the hue that the organ table gives an organ."""
    return float(hue_deg(np.array(ORGANS[name].colour_rgb, float)[None] / 255)[0])


def has_hue_of(
    name: str, picture: FloatArray, at: FloatArray
) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return for places `(N, 2)` of a picture, in pixels, whether their colour is nearest to an organ's.

    A place is the median of 3 x 3 pixels.
    """
    found = hue_deg(medians(picture, at))
    apart = np.array([np.abs(found - organ_hue_deg(one)) for one in CHOICE])
    apart = np.minimum(apart, 360 - apart)
    own = apart[CHOICE.index(name)]
    return np.asarray((own <= NEAR_DEG) & (own <= apart.min(axis=0)))


def is_grey(picture: FloatArray, at: FloatArray) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return for places of a picture whether they have no colour."""
    return np.asarray(np.isnan(hue_deg(medians(picture, at))))


def is_inside(picture: FloatArray, at: FloatArray) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return for places whether they are in a picture, all of the 3 x 3 pixels around them."""
    height, width, _ = picture.shape
    rounded = np.rint(at)
    return np.asarray(((rounded >= 1) & (rounded < [width - 1, height - 1])).all(axis=1))


def medians(picture: FloatArray, at: FloatArray) -> FloatArray:
    """Return the median colour of the 3 x 3 pixels around each place."""
    assert is_inside(picture, at).all(), "a place is not in the picture"
    assert len(at), "no place is in the picture"
    return np.array(
        [
            np.median(picture[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3), axis=0)
            for x, y in np.rint(at).astype(int)
        ]
    )
