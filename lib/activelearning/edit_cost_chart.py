"""Chart and CSV tables of the edit costs."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from lib.activelearning.edit_costs import WINDOW
from lib.reports.figures import png, styled_figure
from lib.reports.pages import write_csv_rows

_POINT = "#2f5d8a"
_MEDIAN = "#b5331b"
_GREY = "#8a8a8a"
_DRAWING = threading.Lock()
"""Held while a chart is drawn, because Matplotlib's style is global to the process."""

SUBMISSION_COLUMNS = ("time", "image", "author", "model_version", "was_trained_on", "counts", "organs",
                      "mean_dsc", "added_path_mm", "changed_voxels", "left_out", "trouble")  # fmt: skip
ORGAN_COLUMNS = ("n", "unchanged", "missed", "dsc", "added_path_mm", "changed_voxels", "changed_ml")


def edit_chart(edit_costs: Mapping[str, Any]) -> bytes:
    """Return a PNG: DSC and added path of each submission, their running medians, and the models.

    Args:
        edit_costs: Result of `lib.activelearning.edit_costs.summary`.
    """
    shown = [row for row in edit_costs["submissions"] if row["mean_dsc"] is not None]
    with _DRAWING, styled_figure(7.4, 4.8) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        _panel(upper, shown, lambda row: 100 * row["mean_dsc"])
        _panel(lower, shown, lambda row: row["added_path_mm"])
        upper.set_ylabel("Mean DSC (%)")
        lower.set_ylabel("Added path (mm)")
        lower.set_ylim(bottom=0)
        lower.set_xlim(0.4, max(1, len(shown)) + 0.6)
        lower.set_xlabel("Submission")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _name_models(upper, shown)
        figure.suptitle(edit_costs["verdict"], fontsize=8.5, color=_GREY, wrap=True)
        if shown:
            handles, names = upper.get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=3)
        else:
            upper.annotate(
                "no submission was measured yet", (0.5, 0.5), xycoords="axes fraction", ha="center"
            )
        return png(figure)


def _panel(
    axis: Any, shown: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]
) -> None:
    """Plot one measure over the number of the submission, from 1."""
    for index in _new_models(shown):
        axis.axvline(index + 0.5, color=_GREY, linewidth=0.7, linestyle="--", zorder=1)
    for counts, colour, name in (
        (True, _POINT, "a submission"),
        (False, "white", "does not count: trained on before, or submitted again"),
    ):
        numbers = [n for n, row in enumerate(shown, start=1) if row["counts"] is counts]
        if numbers:
            axis.scatter(
                numbers,
                [value(shown[n - 1]) for n in numbers],
                s=16,
                color=colour,
                edgecolors=_POINT if counts else _GREY,
                linewidths=0.7,
                label=name,
                zorder=3,
            )
    with_median = [n for n, row in enumerate(shown, start=1) if row["running_median"]]
    if with_median:
        medians = [value(shown[n - 1]["running_median"]) for n in with_median]
        name = f"median of the last {WINDOW} that count"
        axis.plot(with_median, medians, "-", color=_MEDIAN, linewidth=1.4, label=name, zorder=2)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _new_models(shown: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the indices of the submissions whose model version differs from the previous submission's."""
    versions = [row["model_version"] for row in shown]
    return [n for n in range(len(versions)) if n == 0 or versions[n] != versions[n - 1]]


def _name_models(axis: Any, shown: Sequence[Mapping[str, Any]]) -> None:
    """Write the hash of each model version at the vertical line where its submissions begin."""
    for index in _new_models(shown):
        axis.annotate(
            shown[index]["model_version"].rpartition("-")[2][:12],
            (index + 0.5, 1.02),
            xycoords=("data", "axes fraction"),
            fontsize=6.5,
            color=_GREY,
            rotation=30,
            annotation_clip=False,
        )


def write_tables(folder: Path, edit_costs: Mapping[str, Any]) -> list[Path]:
    """Write `edit-cost.csv` and `edit-cost-organs.csv` into `folder`, atomically; return their paths.

    The first has a row per submission, the second the medians per organ.
    """
    submissions = [
        {**row, "left_out": " ".join(row["left_out"])} for row in edit_costs["submissions"]
    ]
    organs = [{"organ": name, **medians} for name, medians in edit_costs["organs"].items()]
    tables = {
        folder / "edit-cost.csv": (SUBMISSION_COLUMNS, submissions),
        folder / "edit-cost-organs.csv": (("organ", *ORGAN_COLUMNS), organs),
    }
    for path, (columns, rows) in tables.items():
        write_csv_rows(path, [columns, *([row[name] for name in columns] for row in rows)])
    return list(tables)
