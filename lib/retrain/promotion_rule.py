"""Promotion rule: whether a candidate model replaces the active model, from DSC on the same cases."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from lib.config import RetrainConfig
from lib.imaging.quantities import FloatArray

NO_EVALUATION_CASE = (
    "no usable evaluation case: the candidate model cannot be compared, because no evaluation case has a label "
    "without plausibility warnings (listed by GET /organnet/status, ignored with the setting doubted_may_judge)"
)
CaseDice = Mapping[str, Mapping[str, float]]
"""Image id -> TG-263 name -> DSC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionDecision:
    """Result of the promotion rule; the fields are the keys of the stored report."""

    is_promoted: bool
    """Whether the candidate model becomes the active model."""
    reason: str
    """One sentence."""
    candidate_dsc: float | None = None
    """Mean DSC of the candidate model over pairs of case and organ; None without a pair."""
    served_dsc: float | None = None
    """Mean DSC of the active model on the same pairs; None without an active model."""
    difference: float | None = None
    """Mean of the paired differences, candidate minus active."""
    low: float | None = None
    """One-sided lower bound of that mean at `promotion_confidence`."""
    high: float | None = None
    """One-sided upper bound of that mean, at the same confidence."""
    pairs: int = 0
    """Number of pairs."""
    organs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Organ -> mean DSC of the candidate and of the active model, and the difference."""


def decide_promotion(
    candidate: CaseDice,
    served: CaseDice | None,
    config: RetrainConfig,
    *,
    has_more_labels: bool,
    is_first: bool,
) -> PromotionDecision:
    """Return whether the candidate model replaces the active model.

    The candidate is promoted if it is not inferior: the lower bound of the mean paired difference is at least
    `-promotion_margin` (a non-inferiority test: Piaggio et al. 2012, CONSORT extension), and no organ's mean
    DSC falls by more than `max_organ_drop`. If it is not superior either (the bound is at most 0), it must
    have been trained on more labels.

    The bound is that of a paired t-test over pairs of case and organ (Student 1908). Organs of one case are not
    independent, so with few cases the bound is too high; with clustering, two cases could not decide anything.

    Args:
        candidate: DSC of the candidate model.
        served: DSC of the active model on the same cases; None if there is none, or it does not load.
        config: Margin, confidence, largest drop per organ, DSC that a first model needs.
        has_more_labels: Whether the candidate model and its parents were trained on more labels.
        is_first: Whether no model was promoted before: there is no active model, or it is the starter.
    """
    pairs = [(case, organ) for case, organs in candidate.items() for organ in organs]
    if served is not None:
        pairs = [(case, organ) for case, organ in pairs if organ in served.get(case, {})]
    new = np.array([candidate[case][organ] for case, organ in pairs])
    if not len(new):
        return PromotionDecision(is_promoted=False, reason=NO_EVALUATION_CASE)
    mean = float(new.mean())
    if served is None:
        return PromotionDecision(
            is_promoted=mean >= config.min_first_dsc,
            reason=_first(mean, config, pairs),
            candidate_dsc=mean,
            pairs=len(pairs),
            organs=_organ_means(pairs, candidate=new),
        )
    old = np.array([served[case][organ] for case, organ in pairs])
    return _against(pairs, new, old, config, has_more_labels=has_more_labels, is_first=is_first)


def _first(mean: float, config: RetrainConfig, pairs: list[tuple[str, str]]) -> str:
    cases = len({case for case, _ in pairs})
    relation = "reaches" if mean >= config.min_first_dsc else "is below"
    return (
        f"there is no active model; mean DSC {mean:.3f} on {cases} cases {relation} the "
        f"{config.min_first_dsc:g} that a first model needs (min_first_dsc)"
    )


def _against(
    pairs: list[tuple[str, str]],
    new: FloatArray,
    old: FloatArray,
    config: RetrainConfig,
    *,
    has_more_labels: bool,
    is_first: bool,
) -> PromotionDecision:
    differences = new - old
    low, high = bounds(differences, config.promotion_confidence)
    organs = _organ_means(pairs, candidate=new, served=old)
    for means in organs.values():
        means["difference"] = means["candidate"] - means["served"]
    worst = min(organs, key=lambda organ: organs[organ]["difference"])
    comparison = (
        f"mean DSC {new.mean():.3f} against {old.mean():.3f} on {len({c for c, _ in pairs})} cases, difference "
        f"{differences.mean():+.3f} (at least {low:+.3f} with {config.promotion_confidence:.0%} confidence)"
    )
    refusal = None
    if low < -config.promotion_margin:
        refusal = f"may be worse by more than {config.promotion_margin:g}"
    elif organs[worst]["difference"] < -config.max_organ_drop:
        refusal = f"{worst} falls by {-organs[worst]['difference']:.3f}, more than {config.max_organ_drop:g}"
    elif is_first and new.mean() < config.min_first_dsc:
        refusal = f"below the {config.min_first_dsc:g} that a first model needs (min_first_dsc)"
    elif low <= 0 and not has_more_labels:
        refusal = "not better, and trained on no more labels"
    verdict = refusal or ("better" if low > 0 else "non-inferior, and trained on more labels")
    return PromotionDecision(
        is_promoted=refusal is None,
        reason=f"{verdict}: {comparison}",
        candidate_dsc=float(new.mean()),
        served_dsc=float(old.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        pairs=len(pairs),
        organs=organs,
    )


def is_clearly_worse(
    candidate: CaseDice, served: CaseDice, config: RetrainConfig, *, cases: int
) -> bool:
    """Return whether a candidate can be rejected although some evaluation cases are left.

    The upper bound of the mean difference, over the cases so far, must be below `-promotion_margin`. Since the
    question is asked after each of `cases` cases, each time has the error `(1 - promotion_confidence) / cases`:
    all together, a candidate that is not inferior is rejected early with a probability of at most
    `1 - promotion_confidence` (Bonferroni's inequality). The bound is that of Student's t over the means of
    cases, which are independent, unlike organs of one case; so it needs three cases or more in practice.

    There is no early promotion: the limit of each organ (`max_organ_drop`) needs every case.

    Args:
        candidate: DSC of the candidate model so far.
        served: DSC of the active model, on at least these cases.
        config: Margin and confidence.
        cases: Number of evaluation cases.
    """
    differences = [
        np.mean([candidate[case][organ] - served[case][organ] for organ in organs])
        for case in candidate
        if (organs := candidate[case].keys() & served.get(case, {}).keys())
    ]
    if len(differences) < 2 or len(candidate) >= cases:
        return False
    confidence = 1 - (1 - config.promotion_confidence) / cases
    return bounds(np.array(differences), confidence)[1] < -config.promotion_margin


def bounds(differences: FloatArray, confidence: float) -> tuple[float, float]:
    """Return the one-sided lower and upper bounds of the mean of `differences`, by Student's t.

    A single difference has no variance: both bounds are the difference itself.
    """
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, mean
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    half_width = float(stats.t.ppf(confidence, len(differences) - 1)) * error
    return mean - half_width, mean + half_width


def _organ_means(pairs: list[tuple[str, str]], **values: FloatArray) -> dict[str, dict[str, float]]:
    """Return organ -> name -> mean over the cases, of values `(N,)` that belong to `pairs`."""
    means: dict[str, dict[str, float]] = {}
    for organ in sorted({organ for _, organ in pairs}):
        is_organ = np.array([pair_organ == organ for _, pair_organ in pairs])
        means[organ] = {name: float(array[is_organ].mean()) for name, array in values.items()}
    return means
