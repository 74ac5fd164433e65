"""Is a difference on the same cases more than chance? One test for every comparison of this project.

Cases are the unit: two organs of one patient, or two seeds on one patient, are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import wilcoxon

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Paired:
    """One number per case, twice.

    Attributes:
        mean: Over cases, of the first less the second.
        low: Lower end of its 95 % interval (bootstrap over cases; Efron and Tibshirani 1993, section 13).
        high: Upper end.
        p: Of Wilcoxon's signed-rank test over cases, two-sided; 1 where nothing differs.
    """

    mean: float
    low: float
    high: float
    p: float


def paired(own: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> Paired:
    """Return how `own` differs from `other`, case by case; both in one order of cases."""
    each = own - other
    rng = np.random.default_rng(0)
    resampled = each[rng.integers(len(each), size=(RESAMPLES, len(each)))].mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    p = float(wilcoxon(each).pvalue) if bool(np.any(each)) else 1.0
    return Paired(float(each.mean()), float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return `p_values` after Holm's step-down correction (Scand J Statist 1979), in their own order."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = highest
    return corrected
