"""What the numbers allow to say, in sentences; and no more than that."""

from collections.abc import Sequence

import numpy as np

from lib.experiments.strategy_ranking import (
    Pair,
    PairConclusion,
    StrategyRank,
    interval,
    verdict,
)

BASELINES = ("random", "random_foreground")
"""What a strategy has to beat."""
FEWEST_SEEDS = 2


def conclusion(lines: Sequence[StrategyRank], every: Sequence[Pair]) -> list[str]:
    """Return one sentence or more for each baseline: who beats it beyond chance; and what limits that."""
    if not every:
        return [f"`{lines[0].strategy}` alone took part: there is nothing to compare it with."]
    seeds, said = len(lines[0].aubc), []
    if seeds < FEWEST_SEEDS:
        said.append(
            "One seed: whether a difference is more than the luck of one draw cannot be told, and no strategy "
            "is said to beat another."
        )
    else:
        said.append(_worth_of_labels(lines))
    for baseline in BASELINES:
        against = [
            _turned(pair, baseline) for pair in every if baseline in (pair.first, pair.second)
        ]
        if not against:
            said.append(f"`{baseline}` did not take part: nothing is said about it.")
            continue
        said += _against(baseline, against)
    said += [
        f"`{line.strategy}` drew {100 * line.blind:.0f} % of its labels at random, since its scores could rank "
        "nothing: its line is in so far that of a random draw."
        for line in lines
        if line.blind > 0 and line.strategy != BASELINES[0]
    ]
    return said


def _worth_of_labels(lines: Sequence[StrategyRank]) -> str:
    """Return what more labels gained at all: without a gain, no choice among them can be the better one."""
    by_seed = np.mean([line.gain for line in lines], axis=0)
    gain, (low, high) = float(by_seed.mean()), interval(by_seed)
    told = f"From the first to the last budget mean DSC changed by {gain:+.3f}, all strategies together"
    if low is None or high is None:
        return f"{told}."
    told += f" (95 % over seeds {low:+.3f} to {high:+.3f})"
    if low > 0 or high < 0:
        return f"{told}."
    return (
        f"{told}: no more than the luck of a training. Where more labels make no better model, none of them is "
        "the better one to ask for: what follows cannot tell good strategies from bad ones. Longer trainings, "
        "or fewer first labels, are needed for that."
    )


def _against(baseline: str, against: Sequence[Pair]) -> list[str]:
    of = {kind: [p for p in against if verdict(p) is kind] for kind in PairConclusion}
    said = []
    if of[PairConclusion.BEATS]:
        said.append(f"Beyond chance better than `{baseline}`: {_listed(of[PairConclusion.BEATS])}.")
    else:
        said.append(f"No strategy is better than `{baseline}` beyond chance.")
    if of[PairConclusion.AHEAD]:
        said.append(
            f"Ahead of `{baseline}` on these test cases, but not beyond the spread of the seeds: "
            f"{_listed(of[PairConclusion.AHEAD])}. Another random seed could change that."
        )
    if of[PairConclusion.BEHIND]:
        said.append(
            f"Behind `{baseline}` on these test cases, but not beyond the spread of the seeds: "
            f"{_listed(of[PairConclusion.BEHIND])}."
        )
    if of[PairConclusion.LOSES]:
        said.append(f"Beyond chance worse than `{baseline}`: {_listed(of[PairConclusion.LOSES])}.")
    if of[PairConclusion.EQUAL]:
        said.append(f"Not to be told from `{baseline}`: {_listed(of[PairConclusion.EQUAL])}.")
    return said


def _turned(pair: Pair, baseline: str) -> Pair:
    """Return the pair with the baseline second."""
    return pair if pair.second == baseline else pair.turned()


def _listed(found: Sequence[Pair]) -> str:
    ordered = sorted(found, key=lambda pair: -pair.difference)
    return ", ".join(
        f"`{p.first}` ({p.difference:+.3f} AUBC, p {p.p:.2g}, ahead in {p.seeds_ahead} of {p.seeds} seeds)"
        for p in ordered
    )
