"""Selection of cases with implausible predictions: by size, position and number of pieces of each organ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from lib.activelearning.pool import (
    LEAD_ORGANS,
    NO_SCORES,
    Choice,
    ImageScore,
    OrganShape,
    Pool,
    at_random,
    index_of_best,
    sorted_candidates,
)
from lib.imaging.quantities import FloatArray, MaskArray

FEWEST_CASES = 3
"""Smallest number of cases with an organ from which usual values are computed."""
MAD_TO_DEVIATION = 1.4826
"""Standard deviation over median absolute deviation of a normal distribution."""
PRIOR_CASES = 4
"""Weight of the prior spreads below, in cases: three contours that happen to be alike must not make the fourth
an outlier."""
PRIOR_LOG_VOLUME = 0.25
"""Spread of the log volume between patients, a quarter of the volume (0.20 to 0.39 in 22 cases of OpenKBP)."""
PRIOR_PLACE_MM = 6.0
"""Spread of an organ's relative position between patients, along each axis (3 to 14 mm in the same cases)."""


@dataclass(frozen=True, slots=True)
class ShapeMeasures:
    """Shapes of `N` cases and `K` organs as arrays; NaN where a case lacks the organ or a value."""

    log_ml: FloatArray
    """`(N, K)`, natural logarithm of the volume."""
    centroid_mm: FloatArray
    """`(N, K, 3)`, RAS."""
    pieces: FloatArray
    """`(N, K)`."""

    @property
    def offset_mm(self) -> FloatArray:
        """`(N, K, K, 3)`: offset from each organ (first) to each other (second); needs no common origin."""
        offset = self.centroid_mm[:, None] - self.centroid_mm[:, :, None]
        organs = np.arange(offset.shape[1])
        offset[:, organs, organs] = np.nan
        return np.asarray(offset)

    def off_place_mm(self, usual_mm: FloatArray) -> FloatArray:
        """Return the displacement of each organ from its usual position, `(N, K, 3)`.

        It is the median over the other organs, so that one displaced organ among them does not matter.

        Args:
            usual_mm: `(K, K, 3)`, from each organ to each other.
        """
        return -median(self.offset_mm - usual_mm, axis=2)


@dataclass(frozen=True, slots=True)
class UsualShape:
    """Median and spread of the measures of many cases; NaN where fewer than `FEWEST_CASES` have a value."""

    log_ml: FloatArray
    """`(K,)`."""
    log_ml_spread: FloatArray
    """`(K,)`."""
    offset_mm: FloatArray
    """`(K, K, 3)`, from each organ to each other."""
    place_spread_mm: FloatArray
    """`(K, 3)`, of `ShapeMeasures.off_place_mm`."""
    pieces: FloatArray
    """`(K,)`, median."""
    share: FloatArray
    """`(K,)`, share of the cases that have the organ."""


def shape_measures(
    cases: Sequence[Mapping[str, OrganShape]], organs: Sequence[str]
) -> ShapeMeasures:
    """Return the shapes of `cases` as arrays, in the order of `organs`."""
    # One array from one flat list, which is fast: 2,000 cases take milliseconds.
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


def usual_shape(measures: ShapeMeasures) -> UsualShape:
    """Return the usual shape of the cases in `measures`."""
    log_ml, log_ml_spread = _middle_and_spread(measures.log_ml, PRIOR_LOG_VOLUME)
    offset_mm, _ = _middle_and_spread(measures.offset_mm, PRIOR_PLACE_MM)
    _, place_spread_mm = _middle_and_spread(measures.off_place_mm(offset_mm), PRIOR_PLACE_MM)
    has = ~np.isnan(measures.log_ml)
    share = has.sum(axis=0) / max(len(has), 1)
    is_enough = has.sum(axis=0) >= FEWEST_CASES
    return UsualShape(
        log_ml=log_ml,
        log_ml_spread=log_ml_spread,
        offset_mm=offset_mm,
        place_spread_mm=place_spread_mm,
        pieces=median(measures.pieces),
        share=np.where(is_enough, share, np.nan),
    )


def fill_missing(preferred: UsualShape, fallback: UsualShape) -> UsualShape:
    """Return `preferred`, with the values of `fallback` where it has none."""
    filled = {}
    for field in fields(UsualShape):
        values = getattr(preferred, field.name)
        # `pieces` has a median even of fewer than `FEWEST_CASES`, so it is taken from where the volume is.
        is_missing = np.isnan(preferred.log_ml if field.name == "pieces" else values)
        filled[field.name] = np.where(is_missing, getattr(fallback, field.name), values)
    return UsualShape(**filled)


def median(values: FloatArray, axis: int = 0) -> FloatArray:
    """Return the median along `axis` without NaN values; NaN where there are no others."""
    ordered = np.sort(values, axis=axis)  # NaN goes last
    count = (~np.isnan(values)).sum(axis=axis, keepdims=True)
    if ordered.shape[axis] == 0:
        return np.full(count.squeeze(axis).shape, np.nan)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis)
    high = np.take_along_axis(ordered, np.minimum(count // 2, ordered.shape[axis] - 1), axis)
    return np.asarray(((low + high) / 2.0).squeeze(axis))


def _middle_and_spread(values: FloatArray, prior: float) -> tuple[FloatArray, FloatArray]:
    """Return the median over the cases, and the standard deviation by the MAD, pooled with the prior."""
    count = (~np.isnan(values)).sum(axis=0)
    middle = np.where(count >= FEWEST_CASES, median(values), np.nan)
    deviation = MAD_TO_DEVIATION * median(np.abs(values - middle))
    pooled = np.sqrt((count * deviation**2 + PRIOR_CASES * prior**2) / (count + PRIOR_CASES))
    return np.asarray(middle), np.asarray(pooled)


STANDS_OUT = 3.0
"""Smallest deviation of an outlier, in spreads; with nine organs, two spreads are normal."""
MOST = 10.0
"""Largest deviation, in spreads, that is distinguished; larger ones count as this one."""
SWAPPED = 10.0
"""Deviation of swapped sides, in spreads."""
MISSING = 6.0
"""Deviation of a missing organ, in spreads; lower than for swapped sides, as a short scan can lack it."""
NEARLY_ALWAYS = 0.9
"""Share of the cases with an organ from which its absence is a failure."""
PIECES_SPREAD = 0.3
"""Spread of the number of pieces: one piece more than usual is an outlier."""
REASONS = ("sides", "missing", "size", "place", "pieces")
"""Kinds of deviations; of equally large deviations the first is reported."""


@dataclass(frozen=True, slots=True)
class ContourDeviations:
    """Deviations of each predicted contour from the usual shape."""

    by_reason: FloatArray
    """`(N, K, 5)`, in spreads, 0 to `MOST`, in the order of `REASONS`."""
    off_mm: FloatArray
    """`(N, K)`, distance of each organ from its usual position relative to the others."""
    reference: UsualShape
    """The usual shape that the contours are compared with."""
    is_from_annotators: MaskArray
    """`(K,)`, whether the reference comes from annotators' contours, not from the model's own."""


def failure_first(pool: Pool) -> Choice | None:
    """Return the candidate with the most unusual predicted contour, compared with the annotators' contours.

    Hui et al., *Quality assurance tool for organ at risk delineation*, Med Phys 45 (2018): a contour whose
    size or position is far from those of experts is likely to be wrong. Here robust z-scores are used (median
    and MAD, Iglewicz and Hoaglin 1993) of the log volume and of the position of each organ. The position is
    the median offset from the other organs, which needs no common origin and tolerates one displaced organ.
    Further deviations are more pieces than usual, a missing organ that nine of ten cases have, and swapped
    sides. The score of a case is that of its most unusual organ; the sum over the organs breaks ties. An
    organ that annotators contoured in fewer than three cases is compared with the model's other contours.
    """
    names = [name for name in sorted_candidates(pool) if name in pool.scores]
    if not names:
        return at_random(pool, NO_SCORES)
    scores = [pool.scores[name] for name in names]
    annotated = [dict(pool.shapes[name]) for name in sorted(pool.shapes) if pool.shapes[name]]
    organs = sorted({organ for score in scores for organ in score.organs})
    deviations = _deviations(pool, scores, annotated, organs)
    by_organ = deviations.by_reason.max(axis=2)
    worst = by_organ.max(axis=1, initial=0.0)
    chosen = index_of_best(pool.generator(), np.round(worst, 9), np.round(by_organ.sum(axis=1), 9))
    order = [int(k) for k in np.argsort(-by_organ[chosen], kind="stable")]
    outliers = [k for k in order if by_organ[chosen, k] >= STANDS_OUT] or order[:1]
    shapes = _predicted(scores[chosen])
    return Choice(
        image_id=names[chosen],
        rank=1,
        ranked_candidates=len(names),
        score=float(worst[chosen]),
        organs=tuple(organs[k] for k in outliers[:LEAD_ORGANS]) if worst[chosen] > 0 else (),
        why=_why(deviations, chosen, order[0], organs, shapes)
        if worst[chosen] >= STANDS_OUT
        else "no contour stands out by size or position; this case is the least usual",
    )


def _predicted(score: ImageScore) -> dict[str, OrganShape]:
    return {name: organ.shape for name, organ in score.organs.items() if organ.shape is not None}


def _deviations(
    pool: Pool,
    scores: Sequence[ImageScore],
    annotated: Sequence[Mapping[str, OrganShape]],
    organs: Sequence[str],
) -> ContourDeviations:
    """Return the deviations of each organ in each of `scores`."""
    predicted = [_predicted(pool.scores[name]) for name in sorted(pool.scores)]
    annotated_shape = usual_shape(shape_measures(annotated, organs))
    reference = fill_missing(annotated_shape, usual_shape(shape_measures(predicted, organs)))
    measures = shape_measures([_predicted(score) for score in scores], organs)
    # An organ that is not in the model's recipe cannot be missing.
    absent = [{name for name, organ in s.organs.items() if organ.shape is None} for s in scores]
    is_absent = np.array([[organ in names for organ in organs] for names in absent], bool)
    missing = MISSING * (is_absent & (reference.share >= NEARLY_ALWAYS))
    size = np.abs(measures.log_ml - reference.log_ml) / reference.log_ml_spread
    off_mm = measures.off_place_mm(reference.offset_mm)
    displacement = np.abs(off_mm / reference.place_spread_mm).max(axis=2)
    pieces = (measures.pieces - reference.pieces) / PIECES_SPREAD
    sides = SWAPPED * _is_swapped(measures, organs)
    by_reason = np.stack([sides, missing, size, displacement, pieces], axis=2)
    return ContourDeviations(
        by_reason=np.clip(np.nan_to_num(by_reason, nan=0.0), 0.0, MOST),
        off_mm=np.linalg.norm(off_mm, axis=2),
        reference=reference,
        is_from_annotators=~np.isnan(annotated_shape.log_ml),
    )


def _is_swapped(measures: ShapeMeasures, organs: Sequence[str]) -> MaskArray:
    """Return `(N, K)`: organs of one side that lie on the other; +x is the patient's right.

    As in `lib.organs.plausibility`: paired organs are compared with each other, a single one with the midline.
    """
    x = measures.centroid_mm[:, :, 0]
    index = {organ: number for number, organ in enumerate(organs)}
    in_middle = [k for organ, k in index.items() if not organ.endswith(("_L", "_R"))]
    middle = median(x[:, in_middle], axis=1)
    swapped = np.zeros(x.shape, bool)
    no_position = np.full(len(x), np.nan)
    for stem in {organ[:-2] for organ in organs if organ.endswith(("_L", "_R"))}:
        left_index, right_index = index.get(f"{stem}_L"), index.get(f"{stem}_R")
        left = no_position if left_index is None else x[:, left_index]
        right = no_position if right_index is None else x[:, right_index]
        # A missing organ is NaN, and comparisons with NaN are false.
        if left_index is not None:
            swapped[:, left_index] = left > np.where(np.isnan(right), middle, right)
        if right_index is not None:
            swapped[:, right_index] = right < np.where(np.isnan(left), middle, left)
    return swapped


def _why(
    deviations: ContourDeviations,
    case: int,
    k: int,
    organs: Sequence[str],
    shapes: Mapping[str, OrganShape],
) -> str:
    """Return a sentence about the largest deviation of organ `k`."""
    organ = organs[k]
    reference = "in the annotators' contours"
    if not deviations.is_from_annotators[k]:
        reference = (
            "in the model's other contours (annotators contoured it in fewer than "
            f"{FEWEST_CASES} cases)"
        )
    reason = REASONS[int(deviations.by_reason[case, k].argmax())]
    if reason == "sides":
        return f"the model's {organ} lies on the wrong side; left and right may be swapped"
    if reason == "missing":
        return f"the model found no {organ}, which is nearly always there {reference}"
    shape = shapes[organ]
    if reason == "size":
        usual_ml = float(np.exp(deviations.reference.log_ml[k]))
        return f"the model's {organ} has {shape.volume_ml:.3g} mL, {usual_ml:.3g} mL is usual {reference}"
    if reason == "pieces":
        usual_pieces = deviations.reference.pieces[k]
        return f"the model's {organ} is in {shape.pieces} pieces, {usual_pieces:.0f} is usual {reference}"
    off_mm = deviations.off_mm[case, k]
    return f"the model's {organ} lies {off_mm:.0f} mm from its usual position {reference}"
