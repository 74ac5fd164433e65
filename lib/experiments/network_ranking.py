"""Outcomes of several runs -> who stands where, and whether a difference is more than chance.

Cases are the unit of every test: two organs of one patient, or two seeds on one patient, are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lib.errors import ConfigError
from lib.experiments.network_results import NetworkResult
from lib.experiments.paired_statistics import holm, paired


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A network against the first of the table, on the same cases.

    Attributes:
        dsc: Mean over cases of the case's mean DSC, its own less the first's; seeds averaged before.
        low: Lower end of its 95 % interval (bootstrap over cases; Efron and Tibshirani 1993, section 13).
        high: Upper end.
        p: Of Wilcoxon's signed-rank test over cases, two-sided, after Holm's correction (1979) for the number
            of networks compared with the first.
    """

    dsc: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRank:
    """One network's line in the table: means over its seeds.

    Attributes:
        name: What the table calls it.
        outcomes: Its runs, by seed.
        dsc: Mean over seeds of the mean over organs.
        dsc_sd: Sample standard deviation over seeds; None for a single one.
        organ_dsc: Organ -> mean DSC over seeds.
        surface_dsc: As `dsc`, at each organ's tolerance.
        hd95_mm: As `dsc`; missed organs have none.
        missed: Contours of a reference that it did not find, all seeds together.
        difference: Against the first; None for the first itself.
    """

    name: str
    outcomes: Sequence[NetworkResult]
    dsc: float
    dsc_sd: float | None
    organ_dsc: Mapping[str, float]
    surface_dsc: float
    hd95_mm: float
    missed: int
    difference: Difference | None


def network_ranks(outcomes: Sequence[NetworkResult], organs: Sequence[str]) -> list[NetworkRank]:
    """Return a standing for each network, in the order of their first outcomes.

    Args:
        outcomes: Of runs on the same held-out cases.
        organs: TG-263 names, those contoured in some held-out case.

    Raises:
        ConfigError: If the runs were judged on different contours.
    """
    groups: dict[tuple[str, str], list[NetworkResult]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.recipe, outcome.network), []).append(outcome)
    judged = {frozenset((row.case, row.organ) for row in o.rows) for o in outcomes}
    if len(judged) > 1:
        raise ConfigError(
            "the runs were judged on different contours and cannot be compared; "
            "hold the same cases out of each, and take an empty output folder"
        )
    several = len({network for _, network in groups}) < len(groups)
    means = [_case_means(group) for group in groups.values()]
    tests = [paired(own, means[0]) for own in means[1:]]
    corrected = holm([test.p for test in tests])
    found: list[Difference | None] = [None]
    for test, p in zip(tests, corrected, strict=True):
        found.append(Difference(dsc=test.mean, low=test.low, high=test.high, p=p))
    return [
        _standing(recipe if several else network, group, organs, difference)
        for ((recipe, network), group), difference in zip(groups.items(), found, strict=True)
    ]


def _standing(
    name: str, group: Sequence[NetworkResult], organs: Sequence[str], difference: Difference | None
) -> NetworkRank:
    dsc = [outcome.mean("dsc", organs) for outcome in group]
    return NetworkRank(
        name=name,
        outcomes=sorted(group, key=lambda outcome: outcome.seed),
        dsc=float(np.mean(dsc)),
        dsc_sd=float(np.std(dsc, ddof=1)) if len(dsc) > 1 else None,
        organ_dsc={o: float(np.mean([g.organ_mean("dsc", o) for g in group])) for o in organs},
        surface_dsc=float(np.mean([outcome.mean("surface_dsc", organs) for outcome in group])),
        hd95_mm=float(np.mean([outcome.mean("hd95_mm", organs) for outcome in group])),
        missed=sum(row.is_missed for outcome in group for row in outcome.rows),
        difference=difference,
    )


def _case_means(group: Sequence[NetworkResult]) -> npt.NDArray[np.float64]:
    """Return each case's mean DSC over its organs and the seeds, in the cases' order."""
    values: dict[str, list[float]] = {}
    for outcome in group:
        for row in outcome.rows:
            values.setdefault(row.case, []).append(row.dsc)
    return np.array([np.mean(values[case]) for case in sorted(values)])
