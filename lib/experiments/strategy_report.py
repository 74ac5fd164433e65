"""Report of a simulation of active learning: CSV tables, Markdown and HTML pages, learning curves."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.activelearning.selection.catalogue import METHODS
from lib.experiments.paired_statistics import Values, mean_sd
from lib.experiments.protocol import Protocol
from lib.experiments.strategy_ranking import (
    Curve,
    Pair,
    StrategyRank,
    compare_pairs,
    conclude,
    conclusions,
    strategy_ranks,
)
from lib.reports.figures import SERIES_COLOURS, draw_grid, png, styled_figure
from lib.reports.pages import Picture, Report, Section, Table, write_csv_rows, write_page
from lib.storage.atomic_files import replacing

CHART = "learning-curves.png"
_COSTS = ("cases", "slices", "voxels")
_DEFINITIONS = (
    "Mean DSC: mean over organs of each organ's mean over the held-out test cases. An organ that a reference "
    "does not contain is unknown and left out; a missed organ counts as 0.",
    "AUBC: area under the curve of mean DSC over the number of labelled cases, by the trapezoid rule, divided "
    "by its width (as in nnActive, Lueth et al., TMLR 2025). AUBC by voxels: the same over foreground voxels, "
    "in the range that all strategies of a seed cover. Mean ± sample standard deviation over seeds.",
    "Cases, slices, voxels: annotation cost of the labels after the last round, mean over seeds; CT slices and "
    "voxels that contain an organ. Query time: time for scores and choices of a round, without the scores of "
    "the shared start.",
    "Test over cases: each test case's AUBC of its mean DSC, seeds averaged; Wilcoxon's signed-rank test, "
    "two-sided, Holm correction for all pairs. It takes the trained models as given, and says whether other "
    "patients would show the same difference. Interval over seeds (paired t interval, not corrected): whether "
    "other initial labels and weights would show the same. A rank test over few seeds cannot be significant "
    "(three seeds: p is at least 0.25), so none is made.",
    "A strategy beats another if p is below 0.05 and the 95 % confidence interval over seeds excludes 0.",
    "Files: every round in `rounds.csv`; the tables in `standings.csv` and `pairs.csv`.",
)


def write_report(
    output: Path,
    protocol: Protocol,
    curves: Sequence[Curve],
    *,
    conditions: Sequence[str],
    command: str,
) -> list[str]:
    """Write `report.html`, `report.md`, the chart and three CSV tables into `output`; return the conclusions.

    Args:
        output: A folder.
        protocol: Protocol of the simulation.
        curves: Result of `lib.experiments.strategy_ranking.learning_curves`; not empty.
        conditions: Conditions common to all strategies, a sentence each.
        command: The command line.
    """
    ranks, pairs = strategy_ranks(curves), compare_pairs(curves)
    summary = conclusions(ranks, pairs)
    seeds = len({curve.seed for curve in curves})
    if seeds < protocol.seeds:
        summary = [
            f"Incomplete: all rounds are finished for {seeds} of {protocol.seeds} seeds; only these are shown.",
            *summary,
        ]
    picture = chart(curves)
    with replacing(output / CHART) as beside:
        beside.write_bytes(picture)
    write_csv_rows(output / "standings.csv", rank_rows(ranks))
    write_csv_rows(output / "pairs.csv", pair_rows(pairs))
    write_csv_rows(output / "rounds.csv", round_rows(curves))
    first, *others = summary
    report = Report(
        title="Comparison of query strategies",
        summary=[f"**{first}**", *others],
        sections=[
            Section(
                pictures=[
                    Picture(
                        picture,
                        f"Learning curves; thick: mean over seeds ({seeds}), thin: each seed.",
                        "Mean DSC over labelled cases and over labelled voxels",
                        CHART,
                    )
                ],
                tables=[_rank_table(ranks), _pair_table(pairs)],
            ),
            Section(heading="Conditions", items=conditions, command=command),
            Section(heading="Strategies", items=[_description(rank.strategy) for rank in ranks]),
            Section(
                heading="First choices of the first seed",
                items=[_first_choice(c) for c in curves if c.seed == curves[0].seed],
            ),
            Section(heading="Definitions", items=_DEFINITIONS),
        ],
    )
    for suffix in ("md", "html"):
        write_page(output / f"report.{suffix}", report)
    return summary


def chart(curves: Sequence[Curve]) -> bytes:
    """Return a PNG: mean DSC over labelled cases, and over foreground voxels; a thin line for each seed."""
    with styled_figure(9.5, 4.0) as figure:
        axes: Any = figure.subplots(1, 2, sharey=True)
        for number, strategy in enumerate(dict.fromkeys(curve.strategy for curve in curves)):
            own = [curve for curve in curves if curve.strategy == strategy]
            colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
            _draw_lines(axes[0], [(c.cases, 100 * c.dsc) for c in own], colour, strategy)
            _draw_lines(axes[1], [(c.voxels / 1e3, 100 * c.dsc) for c in own], colour, strategy)
        axes[0].set_xlabel("Labelled cases")
        axes[0].set_ylabel("DSC, mean over organs on the test cases (%)")
        axes[1].set_xlabel("Labelled foreground voxels (thousands)")
        cases = curves[0].cases
        axes[0].set_xticks(cases, [f"{value:g}" for value in cases])
        axes[0].legend(loc="lower right")
        for axis in axes:
            draw_grid(axis)
        return png(figure)


def rank_rows(ranks: Sequence[StrategyRank]) -> Iterable[Sequence[Any]]:
    """Yield head and rows of `standings.csv`."""
    yield (
        "strategy", "seeds", "aubc", "aubc_sd", "final_dsc", "final_dsc_sd", "voxel_aubc",
        "voxel_aubc_sd", *_COSTS, "ask_s", "blind",
    )  # fmt: skip
    for rank in ranks:
        numbers = [*mean_sd(rank.aubc), *mean_sd(rank.final), *mean_sd(rank.voxel_aubc)]
        yield (
            rank.strategy,
            len(rank.aubc),
            *("" if number is None else f"{number:.5f}" for number in numbers),
            *(f"{_mean_cost(rank, name):g}" for name in _COSTS),
            f"{float(np.mean(rank.ask_s)):.2f}",
            f"{rank.random_share:.3f}",
        )


def pair_rows(pairs: Sequence[Pair]) -> Iterable[Sequence[Any]]:
    """Yield head and rows of `pairs.csv`."""
    yield (
        "first", "second", "difference", "low", "high", "p", "seeds_ahead", "seeds", "seed_low",
        "seed_high", "verdict",
    )  # fmt: skip
    for pair in pairs:
        d, interval = pair.difference, pair.seed_interval
        yield (
            pair.first,
            pair.second,
            *(f"{value:.6g}" for value in (d.mean, d.low, d.high, d.p)),
            pair.seeds_ahead,
            len(pair.by_seed),
            *(f"{end:.6g}" if interval else "" for end in interval or (0, 0)),
            conclude(pair).value,
        )


def round_rows(curves: Sequence[Curve]) -> Iterable[Sequence[Any]]:
    """Yield head and rows of `rounds.csv`: each round of each curve."""
    organs = sorted(
        {o for c in curves for record in c.rounds for dsc in record.per_case.values() for o in dsc}
    )
    yield ("strategy", "seed", *_COSTS, "dsc", *organs, "steps", "picks")
    for curve in curves:
        for record in curve.rounds:
            by_organ = [[d[o] for d in record.per_case.values() if o in d] for o in organs]
            yield (
                curve.strategy,
                curve.seed,
                *(getattr(record.cost, name) for name in _COSTS),
                f"{record.dsc:.5f}",
                *(f"{float(np.mean(values)):.5f}" if values else "" for values in by_organ),
                record.steps,
                " ".join(pick.image_id for pick in record.picks),
            )


def _rank_table(ranks: Sequence[StrategyRank]) -> Table:
    rows = [
        [
            rank.strategy,
            f"**{_mean_sd(rank.aubc)}**",
            _mean_sd(rank.final),
            _mean_sd(rank.voxel_aubc),
            *(f"{_mean_cost(rank, name):,.0f}" for name in _COSTS),
            f"{float(np.mean(rank.ask_s)):.1f}",
        ]
        for rank in ranks
    ]
    head = ("strategy", "AUBC", "final DSC", "AUBC by voxels", *_COSTS, "query time (s)")
    return Table("Query strategies, ordered by AUBC.", head, rows)


def _pair_table(pairs: Sequence[Pair]) -> Table:
    rows = [
        [
            pair.first,
            pair.second,
            f"{pair.difference.mean:+.4f}",
            f"{pair.difference.low:+.3f} to {pair.difference.high:+.3f}",
            f"{pair.difference.p:.2g}",
            f"{pair.seeds_ahead} of {len(pair.by_seed)}",
            " to ".join(f"{end:+.3f}" for end in pair.seed_interval or ()),
            conclude(pair).value,
        ]
        for pair in pairs
    ]
    return Table(
        "Paired differences, the first strategy less the second, with 95 % confidence intervals.",
        (
            "first", "second", "AUBC difference", "95 % over test cases", "p (Holm)", "seeds ahead",
            "95 % over seeds", "conclusion",
        ),
        rows,
    )  # fmt: skip


def _draw_lines(axis: Any, curves: Sequence[tuple[Values, Values]], colour: str, name: str) -> None:
    if len(curves) > 1:
        for x, y in curves:
            axis.plot(x, y, "-", color=colour, linewidth=0.5, alpha=0.45)
    x, y = np.mean(curves, axis=0)
    axis.plot(x, y, "-o", color=colour, linewidth=1.6, markersize=3.5, label=name)


def _description(strategy: str) -> str:
    method = METHODS[strategy]
    paper = f"; {method.paper}" if method.paper else ""
    return f"`{strategy}`: {method.description}{paper}."


def _first_choice(curve: Curve) -> str:
    pick = curve.rounds[1].picks[0]
    return f"`{curve.strategy}`: {pick.image_id}, {pick.why}."


def _mean_cost(rank: StrategyRank, name: str) -> float:
    return float(np.mean([getattr(cost, name) for cost in rank.cost]))


def _mean_sd(values: Sequence[float]) -> str:
    mean, sd = mean_sd(values)
    return f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}")
