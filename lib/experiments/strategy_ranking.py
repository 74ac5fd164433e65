"""Learning curves -> numbers of each strategy, and whether a difference between two is more than chance.

Two kinds of chance are told apart. That of the test cases: Wilcoxon's signed-rank test over them, of each
one's area under the budget curve, seeds averaged, corrected by Holm for all pairs. It says whether other
patients would see the same of *these* trained models. That of the draw: first labels and weights differ between
seeds, and with them the models; a t interval of the paired differences over seeds says how far. A strategy is
said to beat another only if the difference passes both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from lib.experiments.label_cost import Cost
from lib.experiments.paired_statistics import holm, paired
from lib.experiments.protocol import Protocol
from lib.experiments.round_records import START, Round, RoundKey

LEVEL = 0.05
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """One strategy under one seed: its rounds, the shared start first."""

    strategy: str
    seed: int
    rounds: tuple[Round, ...]

    @property
    def cases(self) -> Numbers:
        """Labels after each round."""
        return np.array([one.cost.cases for one in self.rounds], float)

    @property
    def voxels(self) -> Numbers:
        """Foreground voxels of these labels."""
        return np.array([one.cost.voxels for one in self.rounds], float)

    @property
    def dsc(self) -> Numbers:
        """Mean DSC on the test cases after each round."""
        return np.array([one.dsc for one in self.rounds])

    def case_areas(self) -> dict[str, float]:
        """Return each test case's area under the budget curve, of its mean DSC over its organs."""
        means = [
            {case: float(np.mean(list(dsc.values()))) for case, dsc in one.per_case.items() if dsc}
            for one in self.rounds
        ]
        cases = self.cases
        return {name: area(cases, np.array([m[name] for m in means])) for name in means[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyRank:
    """One strategy's line in the table; of each number, the seeds' values.

    Attributes:
        strategy: Its name.
        aubc: Area under the curve of mean DSC over cases, normalised.
        voxel_aubc: The same over foreground voxels, within what every strategy of that seed spent.
        final: Mean DSC after the last round.
        gain: By how much that is more than after the first.
        cost: Of the last round's labels.
        ask_s: Seconds for scores and choices, a round.
        blind: Share of the picks that nothing was known for, and that were drawn at random instead.
    """

    strategy: str
    aubc: Sequence[float]
    voxel_aubc: Sequence[float]
    final: Sequence[float]
    gain: Sequence[float]
    cost: Sequence[Cost]
    ask_s: Sequence[float]
    blind: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One strategy against another: AUBC of the first less that of the second.

    Attributes:
        first: A strategy.
        second: Another.
        difference: Mean over test cases and seeds.
        low: Lower end of its 95 % bootstrap interval over test cases.
        high: Upper end.
        p: Of Wilcoxon's signed-rank test over test cases, after Holm's correction for all pairs.
        seeds_ahead: In how many seeds the first is ahead.
        seeds_behind: In how many the second is; a seed in which both are alike is nobody's.
        seeds: How many there are.
        seed_low: Lower end of the 95 % t interval over seeds; None for a single one.
        seed_high: Upper end.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    seeds_ahead: int
    seeds_behind: int
    seeds: int
    seed_low: float | None
    seed_high: float | None

    def turned(self) -> "Pair":
        """Return the second against the first."""
        return Pair(
            first=self.second,
            second=self.first,
            # Not `-`, which makes -0.0 of 0.
            difference=0.0 - self.difference,
            low=-self.high,
            high=-self.low,
            p=self.p,
            seeds_ahead=self.seeds_behind,
            seeds_behind=self.seeds_ahead,
            seeds=self.seeds,
            seed_low=None if self.seed_high is None else -self.seed_high,
            seed_high=None if self.seed_low is None else -self.seed_low,
        )


class PairConclusion(Enum):
    """What a pair's numbers allow to say of the first."""

    BEATS = "beats"
    AHEAD = "ahead on these test cases only"
    EQUAL = "no difference beyond chance"
    BEHIND = "behind on these test cases only"
    LOSES = "loses"


def verdict(pair: Pair) -> PairConclusion:
    """Return what may be said: a winner passes the test over cases and lies apart over seeds."""
    if pair.p >= LEVEL:
        return PairConclusion.EQUAL
    is_up = pair.difference > 0
    if pair.seed_low is None or pair.seed_high is None:
        return PairConclusion.AHEAD if is_up else PairConclusion.BEHIND
    if is_up:
        return PairConclusion.BEATS if pair.seed_low > 0 else PairConclusion.AHEAD
    return PairConclusion.LOSES if pair.seed_high < 0 else PairConclusion.BEHIND


def area(x: Numbers, y: Numbers) -> float:
    """Return the area under a curve by the trapezoid rule, over its width: a mean of `y`, and on its scale.

    AUBC as in nnActive (Lueth et al., TMLR 2025), over the number of labels.
    """
    width = float(x[-1] - x[0])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()) / width


def curves(protocol: Protocol, over: Mapping[RoundKey, Round]) -> list[Curve]:
    """Return the curves of those seeds whose every round is over: pairs alone are compared."""
    found = []
    for seed in range(protocol.seeds):
        of_seed = []
        for strategy in protocol.strategies:
            wanted = [RoundKey(seed, 0, START)]
            wanted += [RoundKey(seed, n, strategy) for n in range(1, protocol.rounds + 1)]
            if all(place in over for place in wanted):
                of_seed.append(Curve(strategy, seed, tuple(over[place] for place in wanted)))
        if len(of_seed) == len(protocol.strategies):
            found += of_seed
    return found


def strategy_ranks(found: Sequence[Curve]) -> list[StrategyRank]:
    """Return a line for each strategy, the largest area first."""
    lines = []
    for strategy in dict.fromkeys(curve.strategy for curve in found):
        own = [curve for curve in found if curve.strategy == strategy]
        picks = [pick for curve in own for one in curve.rounds[1:] for pick in one.picks]
        lines.append(
            StrategyRank(
                strategy=strategy,
                aubc=[area(curve.cases, curve.dsc) for curve in own],
                voxel_aubc=[_voxel_area(curve, found) for curve in own],
                final=[float(curve.dsc[-1]) for curve in own],
                gain=[float(curve.dsc[-1] - curve.dsc[0]) for curve in own],
                cost=[curve.rounds[-1].cost for curve in own],
                ask_s=[_ask_s(curve) for curve in own],
                blind=sum(pick.of == 0 for pick in picks) / max(1, len(picks)),
            )
        )
    return sorted(lines, key=lambda line: -float(np.mean(line.aubc)))


def pairs(found: Sequence[Curve]) -> list[Pair]:
    """Return every two strategies, in the order in which they were named."""
    areas: dict[str, list[dict[str, float]]] = {}
    for curve in found:
        areas.setdefault(curve.strategy, []).append(curve.case_areas())
    tables = {
        strategy: np.array([[own[case] for case in sorted(own)] for own in of_seeds])
        for strategy, of_seeds in areas.items()
    }
    every = list(combinations(tables, 2))
    tests = [paired(tables[a].mean(axis=0), tables[b].mean(axis=0)) for a, b in every]
    corrected = holm([test.p for test in tests])
    result = []
    for (first, second), test, p in zip(every, tests, corrected, strict=True):
        by_seed = (tables[first] - tables[second]).mean(axis=1)
        seed_low, seed_high = interval(by_seed)
        result.append(
            Pair(
                first=first,
                second=second,
                difference=test.mean,
                low=test.low,
                high=test.high,
                p=p,
                seeds_ahead=int((by_seed > 0).sum()),
                seeds_behind=int((by_seed < 0).sum()),
                seeds=len(by_seed),
                seed_low=seed_low,
                seed_high=seed_high,
            )
        )
    return result


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation; None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def interval(by_seed: Numbers) -> tuple[float | None, float | None]:
    """Return the ends of the 95 % t interval of a mean over seeds; None for a single one."""
    n = len(by_seed)
    if n < 2:
        return None, None
    reach = float(student.ppf(1 - LEVEL / 2, n - 1) * by_seed.std(ddof=1) / np.sqrt(n))
    return float(by_seed.mean()) - reach, float(by_seed.mean()) + reach


def _voxel_area(curve: Curve, found: Sequence[Curve]) -> float:
    """Return the area over voxels, between what all strategies of the seed had to spend and what all could."""
    of_seed = [other.voxels for other in found if other.seed == curve.seed]
    low, high = max(v[0] for v in of_seed), min(v[-1] for v in of_seed)
    inside = curve.voxels[(curve.voxels > low) & (curve.voxels < high)]
    x = np.array([low, *inside, high])
    return area(x, np.interp(x, curve.voxels, curve.dsc))


def _ask_s(curve: Curve) -> float:
    spent = [
        one.seconds.get("score", 0.0) + one.seconds.get("choose", 0.0) for one in curve.rounds[1:]
    ]
    return float(np.mean(spent))
