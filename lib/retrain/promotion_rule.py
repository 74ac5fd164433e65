"""Which of two models may serve: a pure function of how both did on the same cases."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lib.config import RetrainConfig
from lib.imaging.quantities import FloatArray

NOBODY_JUDGES = (
    "no case judges, so nothing shows that it is not worse: of the referee's cases none has a label that looks "
    "right (GET /organnet/status lists the doubts; the setting doubted_may_judge passes over them)"
)
CaseDice = Mapping[str, Mapping[str, float]]
"""Image id -> TG-263 name -> DSC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionDecision:
    """What the referee said.

    Attributes:
        is_promoted: Whether the candidate may serve.
        reason: Why, in one sentence.
        candidate_dsc: Its mean DSC over pairs of case and organ; None where nothing was compared.
        served_dsc: The served model's, on the same pairs; None where none serves.
        difference: Mean of the paired differences, candidate less served.
        low: Lower bound of that mean, one-sided, at the confidence of the settings.
        high: Upper bound of it, likewise.
        pairs: How many pairs were compared.
        organs: Organ -> mean DSC of the candidate, of the served model, and the difference.
    """

    is_promoted: bool
    reason: str
    candidate_dsc: float | None
    served_dsc: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    organs: Mapping[str, Mapping[str, float]]


def decide_promotion(
    candidate: CaseDice,
    served: CaseDice | None,
    config: RetrainConfig,
    *,
    has_more_labels: bool,
    is_first: bool,
) -> PromotionDecision:
    """Return whether the candidate takes the place of what serves.

    It does if it is not worse: the lower bound of the mean paired difference is at least
    `-promotion_margin` (a test of non-inferiority: Piaggio et al. 2012, CONSORT extension), and no organ's mean
    fell by more than `max_organ_drop`. Where it is not better either, the bound lying at 0 or below, it must
    have learned from more labels.

    The bound is that of a paired t-test over pairs of case and organ (Student 1908). Organs of one case are not
    independent, so with few cases it is narrower than it should be; clustering over two cases would leave
    nothing to decide by.

    Args:
        candidate: DSC of the candidate.
        served: DSC of the served model on the same cases; None where none serves, or it does not load.
        config: Margin, confidence, largest fall of an organ, DSC that a first model needs.
        has_more_labels: Whether the candidate, with the models it came from, learned from more labels.
        is_first: Whether no model trained here was promoted before: none serves, or the starter does.
    """
    pairs = [(case, organ) for case, organs in candidate.items() for organ in organs]
    if served is not None:
        pairs = [(case, organ) for case, organ in pairs if organ in served.get(case, {})]
    new = np.array([candidate[case][organ] for case, organ in pairs])
    if not len(new):
        return PromotionDecision(
            is_promoted=False,
            reason=NOBODY_JUDGES,
            candidate_dsc=None,
            organs={},
        )
    mean = float(new.mean())
    if served is None:
        organs = {o: {"candidate": v} for o, v in _organ_means(pairs, new).items()}
        return PromotionDecision(
            is_promoted=mean >= config.min_first_dsc,
            reason=_first(mean, config, pairs),
            candidate_dsc=mean,
            pairs=len(pairs),
            organs=organs,
        )
    old = np.array([served[case][organ] for case, organ in pairs])
    return _against(pairs, new, old, config, has_more_labels=has_more_labels, is_first=is_first)


def _first(mean: float, config: RetrainConfig, pairs: list[tuple[str, str]]) -> str:
    cases = len({case for case, _ in pairs})
    sign = "reaches" if mean >= config.min_first_dsc else "is below"
    return (
        f"no model serves; mean DSC {mean:.3f} on {cases} cases {sign} the {config.min_first_dsc:g} "
        "that a first model needs (min_first_dsc)"
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
    means_new, means_old = _organ_means(pairs, new), _organ_means(pairs, old)
    organs = {
        organ: {
            "candidate": means_new[organ],
            "served": means_old[organ],
            "difference": means_new[organ] - means_old[organ],
        }
        for organ in means_new
    }
    worst = min(organs, key=lambda organ: organs[organ]["difference"])
    difference = float(differences.mean())
    shown = (
        f"mean DSC {new.mean():.3f} against {old.mean():.3f} on {len({c for c, _ in pairs})} cases, difference "
        f"{difference:+.3f} (at least {low:+.3f} with {config.promotion_confidence:.0%} confidence)"
    )
    refusal = None
    if low < -config.promotion_margin:
        refusal = f"may be worse by more than {config.promotion_margin:g}"
    elif organs[worst]["difference"] < -config.max_organ_drop:
        refusal = f"{worst} falls by {-organs[worst]['difference']:.3f}, more than {config.max_organ_drop:g}"
    elif is_first and new.mean() < config.min_first_dsc:
        refusal = f"below the {config.min_first_dsc:g} that a first model needs (min_first_dsc)"
    elif low <= 0 and not has_more_labels:
        refusal = "not better, and it learned from no more labels"
    verdict = refusal or ("better" if low > 0 else "not worse, and it learned from more labels")
    return PromotionDecision(
        is_promoted=refusal is None,
        reason=f"{verdict}: {shown}",
        candidate_dsc=float(new.mean()),
        served_dsc=float(old.mean()),
        difference=difference,
        low=low,
        high=high,
        pairs=len(pairs),
        organs=organs,
    )


def bounds(differences: FloatArray, confidence: float) -> tuple[float, float]:
    """Return the one-sided lower and upper bounds of the mean of `differences`, by Student's t.

    One difference alone bounds nothing, unless it is the only one there can be: it is taken as it is.
    """
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, mean
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    reach = float(stats.t.ppf(confidence, len(differences) - 1)) * error
    return mean - reach, mean + reach


def _organ_means(pairs: list[tuple[str, str]], values: FloatArray) -> dict[str, float]:
    organs = sorted({organ for _, organ in pairs})
    return {
        o: float(np.mean([v for (_, organ), v in zip(pairs, values, strict=True) if organ == o]))
        for o in organs
    }
