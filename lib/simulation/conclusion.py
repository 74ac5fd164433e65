"""What the numbers allow to say, in sentences; and no more than that."""

from collections.abc import Sequence

from lib.simulation.standings import Pair, Standing, Verdict, verdict

BASELINES = ("random", "random_foreground")
"""What a strategy has to beat."""
FEWEST_SEEDS = 2


def conclusion(lines: Sequence[Standing], every: Sequence[Pair]) -> list[str]:
    """Return one sentence or more for each baseline: who beats it beyond chance; and what limits that."""
    if not every:
        return [f"`{lines[0].strategy}` alone took part: there is nothing to compare it with."]
    seeds, said = len(lines[0].aubc), []
    if seeds < FEWEST_SEEDS:
        said.append(
            "One seed: whether a difference is more than the luck of one draw cannot be told, and no strategy "
            "is said to beat another."
        )
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


def _against(baseline: str, against: Sequence[Pair]) -> list[str]:
    of = {kind: [p for p in against if verdict(p) is kind] for kind in Verdict}
    said = []
    if of[Verdict.BEATS]:
        said.append(f"Beyond chance better than `{baseline}`: {_listed(of[Verdict.BEATS])}.")
    else:
        said.append(f"No strategy is better than `{baseline}` beyond chance.")
    if of[Verdict.AHEAD]:
        said.append(
            f"Ahead of `{baseline}` on these test cases, but not beyond the spread of the seeds: "
            f"{_listed(of[Verdict.AHEAD])}. Another draw of the first labels and weights could turn that."
        )
    if of[Verdict.BEHIND]:
        said.append(
            f"Behind `{baseline}` on these test cases, but not beyond the spread of the seeds: "
            f"{_listed(of[Verdict.BEHIND])}."
        )
    if of[Verdict.LOSES]:
        said.append(f"Beyond chance worse than `{baseline}`: {_listed(of[Verdict.LOSES])}.")
    if of[Verdict.EQUAL]:
        said.append(f"Not to be told from `{baseline}`: {_listed(of[Verdict.EQUAL])}.")
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
