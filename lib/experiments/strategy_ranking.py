"""Ranks of query strategies by their learning curves, and conclusions from paired comparisons.

Two sources of chance are tested separately. Test cases: Wilcoxon's signed-rank test over them, of each case's
area under the budget curve, seeds averaged, after Holm correction for all pairs. It says whether other
patients would show the same difference between *these* trained models. Seeds: initial labels and weights
differ between seeds, and with them the models; a t interval of the paired differences over seeds says by how
much. A strategy beats another only if the difference passes both tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

import numpy as np

from lib.experiments.paired_statistics import (
    LEVEL,
    PairedDifference,
    Values,
    paired_differences,
    seed_interval,
)
from lib.experiments.protocol import Protocol
from lib.experiments.round_records import START, LabelCost, Round, RoundKey

BASELINES = ("random", "random_foreground")
"""Strategies that the others should beat."""
FEWEST_SEEDS = 2
"""Smallest number of seeds for a statement about the spread over seeds."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Learning curve of one strategy and seed: its rounds, the shared start first."""

    strategy: str
    seed: int
    rounds: tuple[Round, ...]

    @property
    def cases(self) -> Values:
        """Number of labels after each round."""
        return np.array([record.cost.cases for record in self.rounds], float)

    @property
    def voxels(self) -> Values:
        """Foreground voxels of these labels."""
        return np.array([record.cost.voxels for record in self.rounds], float)

    @property
    def dsc(self) -> Values:
        """Mean DSC on the test cases after each round."""
        return np.array([record.dsc for record in self.rounds])

    def case_areas(self) -> dict[str, float]:
        """Return each test case's area under the budget curve of its mean DSC over its organs."""
        means = [
            {name: float(np.mean([*dsc.values()])) for name, dsc in record.per_case.items() if dsc}
            for record in self.rounds
        ]
        cases = self.cases
        return {name: area(cases, np.array([m[name] for m in means])) for name in means[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyRank:
    """One strategy's row in the table; sequences hold one value per seed."""

    strategy: str
    aubc: Sequence[float]
    """Area under the budget curve of mean DSC over labelled cases, normalised."""
    voxel_aubc: Sequence[float]
    """The same over foreground voxels, in the range that every strategy of the seed covers."""
    final: Sequence[float]
    """Mean DSC after the last round."""
    gain: Sequence[float]
    """Mean DSC after the last round minus that after the first."""
    cost: Sequence[LabelCost]
    """Annotation cost of the last round's labels."""
    ask_s: Sequence[float]
    """Mean time per round for scores and choices, in seconds."""
    random_share: float
    """Share of choices made at random because the strategy had no scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Paired comparison of two strategies: AUBC of the first minus that of the second."""

    first: str
    second: str
    difference: PairedDifference
    """Over test cases, seeds averaged; `p` is after Holm correction for all pairs."""
    by_seed: tuple[float, ...]
    """Mean difference over the test cases, of each seed."""

    @property
    def seeds_ahead(self) -> int:
        """Number of seeds in which the first is better."""
        return sum(difference > 0 for difference in self.by_seed)

    @property
    def seed_interval(self) -> tuple[float, float] | None:
        """Ends of the 95 % t interval over seeds; None for a single seed."""
        return seed_interval(np.array(self.by_seed))

    def swapped(self) -> "Pair":
        """Return the comparison of the second with the first."""
        d = self.difference
        return Pair(
            first=self.second,
            second=self.first,
            # A unary minus would turn 0 into -0.0.
            difference=PairedDifference(0.0 - d.mean, -d.high, -d.low, d.p),
            by_seed=tuple(0.0 - difference for difference in self.by_seed),
        )


class PairConclusion(Enum):
    """Supported statement about the first strategy of a pair; the values are written to `pairs.csv`."""

    BEATS = "beats"
    AHEAD = "ahead on these test cases only"
    EQUAL = "no difference beyond chance"
    BEHIND = "behind on these test cases only"
    LOSES = "loses"


def conclude(pair: Pair) -> PairConclusion:
    """Return the statement that the numbers support: a winner is significant over cases and over seeds."""
    if pair.difference.p >= LEVEL:
        return PairConclusion.EQUAL
    # A single seed has no interval, and shows nothing beyond these test cases.
    low, high = pair.seed_interval or (-np.inf, np.inf)
    if pair.difference.mean > 0:
        return PairConclusion.BEATS if low > 0 else PairConclusion.AHEAD
    return PairConclusion.LOSES if high < 0 else PairConclusion.BEHIND


def area(x: Values, y: Values) -> float:
    """Return the area under a curve by the trapezoid rule, divided by its width: a mean of `y`.

    AUBC as in nnActive (Lueth et al., TMLR 2025), over the number of labels.
    """
    width = float(x[-1] - x[0])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()) / width


def learning_curves(protocol: Protocol, finished: Mapping[RoundKey, Round]) -> list[Curve]:
    """Return the curves of the seeds whose rounds are all finished: only these can be compared in pairs."""
    curves = []
    for seed in range(protocol.seeds):
        seed_curves = []
        for strategy in protocol.strategies:
            keys = [RoundKey(seed, 0, START)]
            keys += [RoundKey(seed, n, strategy) for n in range(1, protocol.rounds + 1)]
            if all(key in finished for key in keys):
                seed_curves.append(Curve(strategy, seed, tuple(finished[key] for key in keys)))
        if len(seed_curves) == len(protocol.strategies):
            curves += seed_curves
    return curves


def strategy_ranks(curves: Sequence[Curve]) -> list[StrategyRank]:
    """Return one rank for each strategy, the largest area first."""
    ranks = []
    for strategy in dict.fromkeys(curve.strategy for curve in curves):
        own = [curve for curve in curves if curve.strategy == strategy]
        picks = [pick for curve in own for record in curve.rounds[1:] for pick in record.picks]
        ranks.append(
            StrategyRank(
                strategy=strategy,
                aubc=[area(curve.cases, curve.dsc) for curve in own],
                voxel_aubc=[_voxel_area(curve, curves) for curve in own],
                final=[float(curve.dsc[-1]) for curve in own],
                gain=[float(curve.dsc[-1] - curve.dsc[0]) for curve in own],
                cost=[curve.rounds[-1].cost for curve in own],
                ask_s=[_ask_s(curve) for curve in own],
                random_share=sum(pick.ranked_candidates == 0 for pick in picks)
                / max(1, len(picks)),
            )
        )
    return sorted(ranks, key=lambda rank: -float(np.mean(rank.aubc)))


def compare_pairs(curves: Sequence[Curve]) -> list[Pair]:
    """Return the comparison of every two strategies, in the order in which they were named."""
    areas: dict[str, list[dict[str, float]]] = {}
    for curve in curves:
        areas.setdefault(curve.strategy, []).append(curve.case_areas())
    # Strategy -> array of seeds x test cases.
    tables = {
        strategy: np.array([[by_case[case] for case in sorted(by_case)] for by_case in seed_areas])
        for strategy, seed_areas in areas.items()
    }
    names = list(combinations(tables, 2))
    differences = paired_differences(
        [(tables[a].mean(axis=0), tables[b].mean(axis=0)) for a, b in names]
    )
    return [
        Pair(
            first=first,
            second=second,
            difference=difference,
            by_seed=tuple((tables[first] - tables[second]).mean(axis=1).tolist()),
        )
        for (first, second), difference in zip(names, differences, strict=True)
    ]


def conclusions(ranks: Sequence[StrategyRank], pairs: Sequence[Pair]) -> list[str]:
    """Return the supported conclusions, a sentence each: gain by more labels, then each baseline."""
    if not pairs:
        return [f"`{ranks[0].strategy}` is the only strategy: there is nothing to compare it with."]
    sentences = []
    if len(ranks[0].aubc) < FEWEST_SEEDS:
        sentences.append(
            "Only one seed was run: differences cannot be distinguished from random effects of initial labels "
            "and weights, so no strategy is reported as better than another."
        )
    else:
        sentences.append(_label_gain(ranks))
    for baseline in BASELINES:
        compared = [
            pair if pair.second == baseline else pair.swapped()
            for pair in pairs
            if baseline in (pair.first, pair.second)
        ]
        if not compared:
            sentences.append(f"The baseline `{baseline}` was not included.")
            continue
        sentences += _baseline_comparison(baseline, compared)
    sentences += [
        f"`{rank.strategy}` selected {100 * rank.random_share:.0f} % of its labels at random because it had no "
        "scores to rank by; to that extent its results are those of random selection."
        for rank in ranks
        if rank.random_share > 0 and rank.strategy != BASELINES[0]
    ]
    return sentences


def _label_gain(ranks: Sequence[StrategyRank]) -> str:
    """Return how much more labels improved the models; without an improvement no selection can be better."""
    by_seed = np.mean([rank.gain for rank in ranks], axis=0)
    gain, interval = float(by_seed.mean()), seed_interval(by_seed)
    text = f"From the first to the last budget, mean DSC over all strategies changed by {gain:+.3f}"
    if interval is None:
        return f"{text}."
    low, high = interval
    text += f" (95 % confidence interval over seeds {low:+.3f} to {high:+.3f})"
    if low > 0 or high < 0:
        return f"{text}."
    return (
        f"{text}, which is within the variation between trainings. If more labels do not improve the model, no "
        "selection of labels can be better than another, and this simulation cannot tell good strategies from "
        "bad ones. Use longer trainings or fewer initial labels."
    )


def _baseline_comparison(baseline: str, pairs: Sequence[Pair]) -> list[str]:
    """Return the sentences about one baseline, which is the second strategy of each of `pairs`."""
    listed = {
        kind: ", ".join(
            f"`{p.first}` ({p.difference.mean:+.3f} AUBC, p {p.difference.p:.2g}, ahead in {p.seeds_ahead} of "
            f"{len(p.by_seed)} seeds)"
            for p in sorted(pairs, key=lambda pair: -pair.difference.mean)
            if conclude(p) is kind
        )
        for kind in PairConclusion
    }
    texts = {
        PairConclusion.BEATS: "Significantly better than `{}`: {}.",
        PairConclusion.AHEAD: "Better than `{}` on these test cases, but not beyond the variation between "
        "seeds: {}. Another choice of initial labels and weights could reverse this.",
        PairConclusion.BEHIND: "Worse than `{}` on these test cases, but not beyond the variation between "
        "seeds: {}.",
        PairConclusion.LOSES: "Significantly worse than `{}`: {}.",
        PairConclusion.EQUAL: "No significant difference to `{}`: {}.",
    }
    sentences = [
        text.format(baseline, listed[kind]) for kind, text in texts.items() if listed[kind]
    ]
    if not listed[PairConclusion.BEATS]:
        sentences.insert(0, f"No strategy is significantly better than `{baseline}`.")
    return sentences


def _voxel_area(curve: Curve, curves: Sequence[Curve]) -> float:
    """Return the area over voxels, in the range that all strategies of the curve's seed cover."""
    voxels = [other.voxels for other in curves if other.seed == curve.seed]
    low, high = max(v[0] for v in voxels), min(v[-1] for v in voxels)
    inside = curve.voxels[(curve.voxels > low) & (curve.voxels < high)]
    x = np.array([low, *inside, high])
    return area(x, np.interp(x, curve.voxels, curve.dsc))


def _ask_s(curve: Curve) -> float:
    seconds = [r.seconds.get("score", 0.0) + r.seconds.get("choose", 0.0) for r in curve.rounds[1:]]
    return float(np.mean(seconds))
