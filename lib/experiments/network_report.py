"""A comparison as files: every number as CSV, the table as Markdown, the charts as PNG."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.evaluation.table import COLUMNS, csv_cells
from lib.experiments.network_ranking import NetworkRank
from lib.experiments.network_results import NetworkResult
from lib.reports.figures import png, styled_figure
from lib.storage.atomic_files import replacing

_COLOURS = (
    "#2f5d8a", "#b5331b", "#3c8a4a", "#8a5fb0", "#c58b1b", "#4aa3a8", "#8a8a8a", "#d0679d", "#5b4a3a"
)  # fmt: skip


def write_comparison(
    output: Path,
    found: Sequence[NetworkRank],
    organs: Sequence[str],
    *,
    conditions: Sequence[str],
    failed: Mapping[str, str],
) -> None:
    """Write `comparison.csv`, `comparison.md` and `comparison.png` into `output`, each atomically.

    Args:
        output: A folder.
        found: The standings, the one that the others are compared with first.
        organs: Columns of the table.
        conditions: What was the same for all, a sentence each.
        failed: Run -> why it is not in the table.
    """
    with (
        replacing(output / "comparison.csv") as beside,
        beside.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("network", "seed", "version", *COLUMNS))
        for standing in found:
            for outcome in standing.outcomes:
                head = (standing.name, outcome.seed, outcome.version)
                writer.writerows((*head, *csv_cells(row)) for row in outcome.rows)
    with replacing(output / "comparison.md") as beside:
        beside.write_text(markdown(found, organs, conditions, failed), encoding="utf-8")
    with replacing(output / "comparison.png") as beside:
        beside.write_bytes(chart(found, organs))


def markdown(
    found: Sequence[NetworkRank],
    organs: Sequence[str],
    conditions: Sequence[str],
    failed: Mapping[str, str],
) -> str:
    """Return the comparison as a page of Markdown."""
    first = found[0].name
    lines = ["# Networks compared", "", *(f"- {sentence}" for sentence in conditions), ""]
    head = ["network", "parameters", "seeds", "mean DSC", *organs]
    head += ["surface DSC", "HD95 (mm)", "missed"]
    lines += [_line(head), _line(["---"] * len(head))]
    for s in found:
        spread = "" if s.dsc_sd is None else f" ± {s.dsc_sd:.3f}"
        lines.append(
            _line(
                [
                    s.name,
                    f"{s.outcomes[0].parameters / 1e6:.2f} M",
                    str(len(s.outcomes)),
                    f"**{s.dsc:.3f}**{spread}",
                    *(f"{s.organ_dsc[organ]:.3f}" for organ in organs),
                    f"{s.surface_dsc:.3f}",
                    f"{s.hd95_mm:.1f}",
                    str(s.missed),
                ]
            )
        )
    lines += [
        "",
        "Mean DSC: over the organs' means, then over seeds (± sample standard deviation over seeds). An organ "
        "that was not found counts as 0; HD95 leaves it out.",
        "",
    ]
    head = ["network", "steps", "training (min)", "seconds a case"]
    head += [f"DSC against {first}", "95 % interval", "p (Holm)"]
    lines += [_line(head), _line(["---"] * len(head))]
    for s in found:
        d = s.difference
        lines.append(
            _line(
                [
                    s.name,
                    _range([o.training.get("steps") for o in s.outcomes], "{:.0f}"),
                    _range([o.training["seconds"] / 60 for o in s.outcomes], "{:.1f}"),
                    _range([o.seconds_per_case for o in s.outcomes], "{:.1f}"),
                    *(
                        ("", "", "")
                        if d is None
                        else (f"{d.dsc:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}", f"{d.p:.2g}")
                    ),
                ]
            )
        )
    lines += [
        "",
        "Difference of the cases' mean DSC (seeds averaged), its bootstrap interval over cases, and Wilcoxon's "
        "signed-rank test over cases.",
    ]
    if failed:
        lines += ["", "Not in the table:", "", *(f"- {run}: {why}" for run, why in failed.items())]
    return "\n".join(lines) + "\n"


def chart(found: Sequence[NetworkRank], organs: Sequence[str]) -> bytes:
    """Return a PNG: DSC per organ and network, a dot for each seed; and the learning curves."""
    curves = any(outcome.curve for standing in found for outcome in standing.outcomes)
    with styled_figure(9.5 if curves else 6.5, 3.6) as figure:
        axes: Any = figure.subplots(
            1, 2 if curves else 1, squeeze=False, width_ratios=(3, 2) if curves else None
        )[0]
        step = 0.8 / len(found)
        for index, standing in enumerate(found):
            colour = _COLOURS[index % len(_COLOURS)]
            where = np.arange(len(organs)) + (index - (len(found) - 1) / 2) * step
            mean = [100 * standing.organ_dsc[organ] for organ in organs]
            axes[0].bar(where, mean, step * 0.9, color=colour, alpha=0.35, label=standing.name)
            for outcome in standing.outcomes:
                dots = [100 * outcome.organ_mean("dsc", organ) for organ in organs]
                axes[0].plot(where, dots, ".", color=colour, markersize=4)
                if curves:
                    _curve(axes[1], outcome, colour)
        axes[0].set_xticks(range(len(organs)), organs, rotation=30, ha="right")
        axes[0].set_ylabel("DSC, mean over held-out cases (%)")
        axes[0].legend(loc="lower left", ncols=2)
        if curves:
            axes[1].set_xlabel("Budget spent (min)")
            axes[1].set_ylabel("Mean DSC (%)")
        return png(figure)


def _curve(axis: Any, outcome: NetworkResult, colour: str) -> None:
    if outcome.curve:
        minutes, dsc = zip(*outcome.curve, strict=True)
        axis.plot(minutes, [100 * value for value in dsc], "-o", color=colour, lw=1, markersize=2.5)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _range(values: Sequence[float | None], form: str) -> str:
    """Return the smallest and the largest of the seeds' values."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low} to {high}"
