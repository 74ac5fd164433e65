"""What contours usually measure, organ by organ, and by how much others differ from that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.activelearning.pool import OrganShape
from lib.imaging.quantities import FloatArray

FEWEST_CASES = 3
"""From fewer cases with an organ nothing is said of what is usual for it."""
MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
PRIOR_CASES = 4
"""So many cases the spreads below count for: three contours that happen to be alike must not make the fourth
stand out."""
PRIOR_LOG_VOLUME = 0.25
"""Between patients: a quarter of the volume (0.20 to 0.39 in 22 clinical cases of OpenKBP)."""
PRIOR_PLACE_MM = 6.0
"""Between patients, of an organ's middle among the others, along each axis (3 to 14 mm in the same cases)."""


@dataclass(frozen=True, slots=True)
class ShapeMeasures:
    """Shapes of `N` cases and `K` organs as arrays; NaN where a case lacks the organ, or a number is none.

    Attributes:
        log_ml: `(N, K)`, natural logarithm of the volume.
        centroid_mm: `(N, K, 3)`, RAS.
        pieces: `(N, K)`.
    """

    log_ml: FloatArray
    centroid_mm: FloatArray
    pieces: FloatArray

    @property
    def offset_mm(self) -> FloatArray:
        """`(N, K, K, 3)`: from each organ (first) to each other (second), whatever the scan's origin."""
        offset = self.centroid_mm[:, None] - self.centroid_mm[:, :, None]
        organs = np.arange(offset.shape[1])
        offset[:, organs, organs] = np.nan
        return np.asarray(offset)

    def off_place_mm(self, usual_mm: FloatArray) -> FloatArray:
        """Return by how much each organ lies off its place, `(N, K, 3)`.

        That is the median over the other organs, so that one of those that is off itself does not count.

        Args:
            usual_mm: `(K, K, 3)`, from each organ to each other.
        """
        return -median(self.offset_mm - usual_mm, axis=2)


@dataclass(frozen=True, slots=True)
class UsualShape:
    """Median and spread of what cases measure; NaN where fewer than `FEWEST_CASES` say it.

    Attributes:
        log_ml: `(K,)`.
        log_ml_spread: `(K,)`.
        offset_mm: `(K, K, 3)`, from each organ to each other.
        place_spread_mm: `(K, 3)`, of `Measures.off_place_mm`.
        pieces: `(K,)`, median.
        share: `(K,)`, of the cases that have the organ.
    """

    log_ml: FloatArray
    log_ml_spread: FloatArray
    offset_mm: FloatArray
    place_spread_mm: FloatArray
    pieces: FloatArray
    share: FloatArray


def measures(cases: Sequence[Mapping[str, OrganShape]], organs: Sequence[str]) -> ShapeMeasures:
    """Return the shapes of `cases` as arrays, in the order of `organs`."""
    # One flat list of numbers, and one array of it: 2,000 cases take milliseconds.
    nothing = (np.nan,) * 5
    flat = [
        nothing
        if (shape := case.get(organ)) is None
        else (shape.volume_ml, float(shape.pieces), *shape.centroid_mm)
        for case in cases
        for organ in organs
    ]
    values = np.array(flat, float).reshape(len(cases), len(organs), 5)
    values[~np.isfinite(values)] = np.nan
    return ShapeMeasures(np.log(np.maximum(values[..., 0], 1e-3)), values[..., 2:], values[..., 1])


def usual(seen: ShapeMeasures) -> UsualShape:
    """Return what the cases in `seen` usually measure."""
    log_ml, log_ml_spread = _middle_and_spread(seen.log_ml, PRIOR_LOG_VOLUME)
    offset_mm, _ = _middle_and_spread(seen.offset_mm, PRIOR_PLACE_MM)
    _, place_spread_mm = _middle_and_spread(seen.off_place_mm(offset_mm), PRIOR_PLACE_MM)
    has = ~np.isnan(seen.log_ml)
    share = has.sum(axis=0) / max(len(has), 1)
    is_known = has.sum(axis=0) >= FEWEST_CASES
    return UsualShape(
        log_ml=log_ml,
        log_ml_spread=log_ml_spread,
        offset_mm=offset_mm,
        place_spread_mm=place_spread_mm,
        pieces=median(seen.pieces),
        share=np.where(is_known, share, np.nan),
    )


def either(one: UsualShape, other: UsualShape) -> UsualShape:
    """Return `one`, and what `other` says where that one says nothing."""
    knows_organ, knows_pair = ~np.isnan(one.log_ml), ~np.isnan(one.offset_mm)
    return UsualShape(
        log_ml=np.where(knows_organ, one.log_ml, other.log_ml),
        log_ml_spread=np.where(knows_organ, one.log_ml_spread, other.log_ml_spread),
        offset_mm=np.where(knows_pair, one.offset_mm, other.offset_mm),
        place_spread_mm=np.where(
            np.isnan(one.place_spread_mm), other.place_spread_mm, one.place_spread_mm
        ),
        pieces=np.where(knows_organ, one.pieces, other.pieces),
        share=np.where(knows_organ, one.share, other.share),
    )


def median(values: FloatArray, axis: int = 0) -> FloatArray:
    """Return the median along `axis` of what is not NaN; NaN where nothing is."""
    ordered = np.sort(values, axis=axis)  # NaN goes last
    count = (~np.isnan(values)).sum(axis=axis, keepdims=True)
    if ordered.shape[axis] == 0:
        return np.full(count.squeeze(axis).shape, np.nan)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis)
    high = np.take_along_axis(ordered, np.minimum(count // 2, ordered.shape[axis] - 1), axis)
    return np.asarray(((low + high) / 2.0).squeeze(axis))


def _middle_and_spread(values: FloatArray, prior: float) -> tuple[FloatArray, FloatArray]:
    """Return the median over the cases, and the deviation by the MAD, mixed with the one known before."""
    count = (~np.isnan(values)).sum(axis=0)
    middle = np.where(count >= FEWEST_CASES, median(values), np.nan)
    deviation = MAD_TO_DEVIATION * median(np.abs(values - middle))
    mixed = np.sqrt((count * deviation**2 + PRIOR_CASES * prior**2) / (count + PRIOR_CASES))
    return np.asarray(middle), np.asarray(mixed)
