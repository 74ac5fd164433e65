"""Paired statistics of all comparisons: tests over cases, intervals over seeds, Holm correction.

Cases are the units of a test: two organs of one patient, or two seeds on one patient, are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t
from scipy.stats import wilcoxon

RESAMPLES = 10_000
"""Number of bootstrap samples for a confidence interval."""
LEVEL = 0.05
"""Significance level; confidence intervals cover 1 - LEVEL = 95 %."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference between two methods that were measured on the same cases."""

    mean: float
    """Mean over cases of the first minus the second."""
    low: float
    """Lower end of its 95 % confidence interval (percentile bootstrap over cases; Efron and Tibshirani 1993,
    section 13)."""
    high: float
    """Upper end."""
    p: float
    """p value of Wilcoxon's signed-rank test over cases, two-sided; 1 if all differences are 0."""


def paired_difference(first: Values, second: Values) -> PairedDifference:
    """Return the difference between `first` and `second`; both hold one value per case, in the same order."""
    differences = first - second
    rng = np.random.default_rng(0)
    samples = rng.integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.percentile(differences[samples].mean(axis=1), [50 * LEVEL, 100 - 50 * LEVEL])
    # Without any difference there are no ranks to test.
    p = float(wilcoxon(differences).pvalue) if bool(np.any(differences)) else 1.0
    return PairedDifference(float(differences.mean()), float(low), float(high), p)


def paired_differences(pairs: Sequence[tuple[Values, Values]]) -> list[PairedDifference]:
    """Return the difference of each pair; the p values are after Holm correction for the number of pairs."""
    differences = [paired_difference(first, second) for first, second in pairs]
    corrected = holm([difference.p for difference in differences])
    return [replace(d, p=p) for d, p in zip(differences, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return `p_values` after Holm's step-down correction (Scand J Statist 1979), in their own order."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = highest
    return corrected


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation; the latter is None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def seed_interval(by_seed: Values) -> tuple[float, float] | None:
    """Return the ends of the 95 % t interval of a mean over seeds; None for a single seed."""
    n = len(by_seed)
    if n < 2:
        return None
    half = float(student_t.ppf(1 - LEVEL / 2, n - 1) * by_seed.std(ddof=1) / np.sqrt(n))
    return float(by_seed.mean()) - half, float(by_seed.mean()) + half
