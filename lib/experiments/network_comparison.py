"""Comparison of networks: training and evaluation of all runs, ranks, tables and chart."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import CASE_ERRORS, ConfigError, TrainingError, case_failure
from lib.evaluation.table import COLUMNS, csv_cells
from lib.experiments.network_runs import NetworkResult, NetworkRun, evaluate_run, train_all
from lib.experiments.paired_statistics import PairedDifference, Values, mean_sd, paired_differences
from lib.organs.table import ORGANS
from lib.reports.figures import SERIES_COLOURS, png, styled_figure
from lib.reports.pages import Picture, Report, Section, Table, write_csv_rows, write_page
from lib.storage.atomic_files import replacing
from lib.training.cases import Case

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRank:
    """One network's row in the table: means over its seeds."""

    name: str
    """Name in the table: the network, or the recipe if one network is compared under several recipes."""
    results: Sequence[NetworkResult]
    """Its runs, ordered by seed."""
    dsc: float
    """Mean over seeds of the mean over organs."""
    dsc_sd: float | None
    """Sample standard deviation over seeds; None for a single seed."""
    organ_dsc: Mapping[str, float]
    """Organ -> mean DSC over seeds."""
    surface_dsc: float
    """As `dsc`, at each organ's tolerance."""
    hd95_mm: float
    """As `dsc`; missed organs are left out."""
    missed: int
    """Number of reference contours for which nothing was predicted, all seeds together."""
    difference: PairedDifference | None
    """Difference to the first network of the table in the cases' mean DSC, seeds averaged; `p` is after
    Holm's correction for the number of networks compared with the first. None for the first."""


def compare_networks(
    runs: Sequence[NetworkRun],
    command: Sequence[str],
    output: Path,
    held_out: Sequence[Case],
    *,
    device: str,
    jobs: int,
    conditions: Sequence[str],
    on_end: Callable[[NetworkRun, str | None], object],
) -> list[NetworkRank]:
    """Train `runs`, evaluate each on `held_out`, and write the comparison into `output`.

    Runs of earlier comparisons in `output` are included, so that seeds or networks can be added one by one.
    A failed run is named in the report, and the others are compared.

    Args:
        runs: The runs to train; the network of the first run is the baseline of the comparison.
        command: The training program; see `lib.experiments.network_runs.train_all`.
        output: Folder for one folder per run, and `comparison.csv`, `.md`, `.html` and `.png`.
        held_out: Test cases, excluded from all training.
        device: Device that contours the held-out cases.
        jobs: Number of simultaneous trainings.
        conditions: Conditions common to all runs, a sentence each, for the report.
        on_end: Called with each finished run, and with the reason if it failed, else None.

    Raises:
        TrainingError: If every run failed.
    """
    failed: dict[str, str] = {}

    def finish(run: NetworkRun, reason: str | None) -> None:
        if reason is not None:
            failed[run.folder] = reason
        on_end(run, reason)

    train_all(runs, command, output, jobs=jobs, on_end=finish)
    results: list[NetworkResult] = []
    earlier = sorted(path.parent for path in output.glob("*/*.safetensors"))
    for folder in dict.fromkeys([*(output / run.folder for run in runs), *earlier]):
        if folder.name in failed:
            continue
        try:
            results.append(evaluate_run(folder, held_out, device=device))
        except CASE_ERRORS as error:
            failed[folder.name] = case_failure(error, folder.name)
            logger.warning("not in the comparison: %s", failed[folder.name])
    if not results:
        raise TrainingError("; ".join(f"{run}: {reason}" for run, reason in failed.items()))
    contoured = {row.organ for result in results for row in result.rows}
    organs = [name for name in ORGANS if name in contoured]
    ranks = network_ranks(results, organs)
    write_comparison(output, ranks, organs, conditions=conditions, failed=failed)
    return ranks


def network_ranks(results: Sequence[NetworkResult], organs: Sequence[str]) -> list[NetworkRank]:
    """Return one rank for each network, in the order of their first results.

    Args:
        results: Results of runs on the same held-out cases.
        organs: TG-263 names of the organs that some held-out case contains.

    Raises:
        ConfigError: If the runs were evaluated on different contours.
    """
    groups: dict[tuple[str, str], list[NetworkResult]] = {}
    for result in results:
        groups.setdefault((result.recipe, result.network), []).append(result)
    if len({frozenset((row.case, row.organ) for row in r.rows) for r in results}) > 1:
        raise ConfigError(
            "the runs were evaluated on different contours and cannot be compared; hold out the same cases in "
            "each run, and start with an empty output folder"
        )
    has_several_recipes = len({network for _, network in groups}) < len(groups)
    case_means = [_case_means(group) for group in groups.values()]
    differences = [None, *paired_differences([(own, case_means[0]) for own in case_means[1:]])]
    return [
        _rank(recipe if has_several_recipes else network, group, organs, difference)
        for ((recipe, network), group), difference in zip(groups.items(), differences, strict=True)
    ]


def write_comparison(
    output: Path,
    ranks: Sequence[NetworkRank],
    organs: Sequence[str],
    *,
    conditions: Sequence[str],
    failed: Mapping[str, str],
) -> None:
    """Write `comparison.csv`, `.md`, `.html` and `.png` into `output`, each atomically.

    Args:
        output: A folder.
        ranks: The networks, the baseline first.
        organs: Columns of the table.
        conditions: Conditions common to all runs, a sentence each.
        failed: Run -> reason why it is not in the table.
    """
    picture = Picture(
        chart(ranks, organs),
        "DSC per organ and network: bars show the mean over seeds, dots single runs.",
        "DSC per organ and network",
        "comparison.png",
    )
    tables = [_accuracy_table(ranks, organs), _difference_table(ranks)]
    sections = [
        Section(heading="Conditions", items=conditions),
        Section(pictures=[picture], tables=tables),
    ]
    if failed:
        reasons = [f"{run}: {reason}" for run, reason in failed.items()]
        sections.append(Section(heading="Failed runs", items=reasons))
    report = Report(title="Comparison of networks", sections=sections)
    rows: list[Sequence[object]] = [("network", "seed", "version", *COLUMNS)]
    for rank in ranks:
        for result in rank.results:
            run = (rank.name, result.seed, result.version)
            rows += [(*run, *csv_cells(row)) for row in result.rows]
    write_csv_rows(output / "comparison.csv", rows)
    for suffix in ("md", "html"):
        write_page(output / f"comparison.{suffix}", report)
    with replacing(output / picture.file) as beside:
        beside.write_bytes(picture.png)


def _accuracy_table(ranks: Sequence[NetworkRank], organs: Sequence[str]) -> Table:
    head = ["network", "parameters", "seeds", "mean DSC", *organs]
    rows = []
    for rank in ranks:
        spread = "" if rank.dsc_sd is None else f" ± {rank.dsc_sd:.3f}"
        rows.append(
            [
                rank.name,
                f"{rank.results[0].parameters / 1e6:.2f} M",
                str(len(rank.results)),
                f"**{rank.dsc:.3f}**{spread}",
                *(f"{rank.organ_dsc[organ]:.3f}" for organ in organs),
                f"{rank.surface_dsc:.3f}",
                f"{rank.hd95_mm:.1f}",
                str(rank.missed),
            ]
        )
    return Table(
        "Accuracy on the held-out cases. Mean DSC: mean over organs, then over seeds (± sample standard "
        "deviation over seeds). A missed organ counts as DSC 0 and is left out of HD95.",
        [*head, "surface DSC", "HD95 (mm)", "missed"],
        rows,
    )


def _difference_table(ranks: Sequence[NetworkRank]) -> Table:
    rows = []
    for rank in ranks:
        cells = [
            rank.name,
            _value_range([result.training.get("steps") for result in rank.results], "{:.0f}"),
            _value_range([result.training["seconds"] / 60 for result in rank.results], "{:.1f}"),
            _value_range([result.seconds_per_case for result in rank.results], "{:.1f}"),
        ]
        d = rank.difference
        cells += (
            ["", "", ""]
            if d is None
            else [f"{d.mean:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}", f"{d.p:.2g}"]
        )
        rows.append(cells)
    return Table(
        f"Cost, and paired difference to the baseline, {ranks[0].name}: difference of the cases' mean DSC "
        "(seeds averaged), its 95 % confidence interval (bootstrap over cases), and the p value of Wilcoxon's "
        "signed-rank test over cases after Holm correction.",
        (
            "network", "steps", "training (min)", "seconds per case", "DSC difference",
            "95 % confidence interval", "p (Holm)",
        ),
        rows,
    )  # fmt: skip


def chart(ranks: Sequence[NetworkRank], organs: Sequence[str]) -> bytes:
    """Return a PNG: DSC per organ and network with a dot for each seed, and the validation curves."""
    has_curves = any(result.curve for rank in ranks for result in rank.results)
    with styled_figure(9.5 if has_curves else 6.5, 3.6) as figure:
        axes: Any = figure.subplots(
            1, 2 if has_curves else 1, squeeze=False, width_ratios=(3, 2) if has_curves else None
        )[0]
        bar_width = 0.8 / len(ranks)
        for index, rank in enumerate(ranks):
            colour = SERIES_COLOURS[index % len(SERIES_COLOURS)]
            x = np.arange(len(organs)) + (index - (len(ranks) - 1) / 2) * bar_width
            means = [100 * rank.organ_dsc[organ] for organ in organs]
            axes[0].bar(x, means, bar_width * 0.9, color=colour, alpha=0.35, label=rank.name)
            for result in rank.results:
                dots = [100 * result.organ_mean("dsc", organ) for organ in organs]
                axes[0].plot(x, dots, ".", color=colour, markersize=4)
                if result.curve:
                    minutes, dsc = np.transpose(result.curve)
                    axes[1].plot(minutes, 100 * dsc, "-o", color=colour, lw=1, markersize=2.5)
        axes[0].set_xticks(range(len(organs)), organs, rotation=30, ha="right")
        axes[0].set_ylabel("DSC, mean over held-out cases (%)")
        figure.legend(loc="outside upper left", ncols=4)
        if has_curves:
            axes[1].set_xlabel("Training time (min)")
            axes[1].set_ylabel("Mean DSC in validation (%)")
        return png(figure)


def _rank(
    name: str,
    group: Sequence[NetworkResult],
    organs: Sequence[str],
    difference: PairedDifference | None,
) -> NetworkRank:
    dsc, dsc_sd = mean_sd([result.mean("dsc", organs) for result in group])
    return NetworkRank(
        name=name,
        results=sorted(group, key=lambda result: result.seed),
        dsc=dsc,
        dsc_sd=dsc_sd,
        organ_dsc={o: float(np.mean([r.organ_mean("dsc", o) for r in group])) for o in organs},
        surface_dsc=float(np.mean([result.mean("surface_dsc", organs) for result in group])),
        hd95_mm=float(np.mean([result.mean("hd95_mm", organs) for result in group])),
        missed=sum(row.is_missed for result in group for row in result.rows),
        difference=difference,
    )


def _case_means(group: Sequence[NetworkResult]) -> Values:
    """Return each case's mean DSC over its organs and the seeds, ordered by case."""
    values: dict[str, list[float]] = {}
    for result in group:
        for row in result.rows:
            values.setdefault(row.case, []).append(row.dsc)
    return np.array([np.mean(values[case]) for case in sorted(values)])


def _value_range(values: Sequence[float | None], form: str) -> str:
    """Return the smallest and the largest value that is not None, or the only one."""
    defined = [value for value in values if value is not None]
    ends = [form.format(end) for end in (min(defined), max(defined))] if defined else []
    return " to ".join(dict.fromkeys(ends))
