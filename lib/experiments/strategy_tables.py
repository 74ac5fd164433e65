"""The rows of a simulation's tables, for people and for programs."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lib.experiments.strategy_ranking import Curve, Pair, StrategyRank, mean_sd, verdict

HEAD = (
    "strategy",
    "AUBC",
    "final DSC",
    "AUBC by voxels",
    "cases",
    "slices",
    "voxels",
    "asking (s)",
)
PAIR_HEAD = (
    "first", "second", "AUBC difference", "95 % over test cases", "p (Holm)", "seeds ahead",
    "95 % over seeds", "verdict",
)  # fmt: skip


def cells(line: StrategyRank, *, emphasis: str = "{}") -> list[str]:
    """Return a strategy's line under `HEAD`; `emphasis` surrounds the number that counts."""
    return [
        line.strategy,
        emphasis.format(_spread(line.aubc)),
        _spread(line.final),
        _spread(line.voxel_aubc),
        *(f"{_mean_cost(line, name):,.0f}" for name in ("cases", "slices", "voxels")),
        f"{float(np.mean(line.ask_s)):.1f}",
    ]


def pair_cells(pair: Pair) -> list[str]:
    """Return a line under `PAIR_HEAD`."""
    over_seeds = ""
    if pair.seed_low is not None and pair.seed_high is not None:
        over_seeds = f"{pair.seed_low:+.3f} to {pair.seed_high:+.3f}"
    return [
        pair.first,
        pair.second,
        f"{pair.difference:+.4f}",
        f"{pair.low:+.3f} to {pair.high:+.3f}",
        f"{pair.p:.2g}",
        f"{pair.seeds_ahead} of {pair.seeds}",
        over_seeds,
        verdict(pair).value,
    ]


def standing_rows(lines: Sequence[StrategyRank]) -> Iterable[Sequence[Any]]:
    """Yield head and lines of `standings.csv`."""
    yield (
        "strategy", "seeds", "aubc", "aubc_sd", "final_dsc", "final_dsc_sd", "voxel_aubc",
        "voxel_aubc_sd", "cases", "slices", "voxels", "ask_s", "blind",
    )  # fmt: skip
    for line in lines:
        numbers = [*mean_sd(line.aubc), *mean_sd(line.final), *mean_sd(line.voxel_aubc)]
        yield (
            line.strategy,
            len(line.aubc),
            *("" if number is None else f"{number:.5f}" for number in numbers),
            *(f"{_mean_cost(line, name):g}" for name in ("cases", "slices", "voxels")),
            f"{float(np.mean(line.ask_s)):.2f}",
            f"{line.blind:.3f}",
        )


def pair_rows(every: Sequence[Pair]) -> Iterable[Sequence[Any]]:
    """Yield head and lines of `pairs.csv`."""
    names = (
        "first", "second", "difference", "low", "high", "p", "seeds_ahead", "seeds", "seed_low", "seed_high"
    )  # fmt: skip
    yield (*names, "verdict")
    for pair in every:
        values = [getattr(pair, name) for name in names]
        yield (*(f"{v:.6g}" if isinstance(v, float) else v for v in values), verdict(pair).value)


def round_rows(found: Sequence[Curve]) -> Iterable[Sequence[Any]]:
    """Yield head and lines of `rounds.csv`: each round of each curve."""
    organs = sorted(
        {o for c in found for r in c.rounds for dsc in r.per_case.values() for o in dsc}
    )
    yield ("strategy", "seed", "cases", "slices", "voxels", "dsc", *organs, "steps", "picks")
    for curve in found:
        for one in curve.rounds:
            means = [
                [dsc[organ] for dsc in one.per_case.values() if organ in dsc] for organ in organs
            ]
            yield (
                curve.strategy,
                curve.seed,
                one.cost.cases,
                one.cost.slices,
                one.cost.voxels,
                f"{one.dsc:.5f}",
                *(f"{float(np.mean(values)):.5f}" if values else "" for values in means),
                one.steps,
                " ".join(pick.image_id for pick in one.picks),
            )


def _mean_cost(line: StrategyRank, name: str) -> float:
    return float(np.mean([getattr(cost, name) for cost in line.cost]))


def _spread(values: Sequence[float]) -> str:
    mean, sd = mean_sd(values)
    return f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}")
