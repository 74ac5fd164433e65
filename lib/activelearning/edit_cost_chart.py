"""The curve of the edit costs as a picture, and as tables."""

import csv
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from lib.activelearning.edit_costs import WINDOW
from lib.reports.figures import png, styled_figure
from lib.storage.atomic_files import replacing

_POINT = "#2f5d8a"
_MEDIAN = "#b5331b"
_GREY = "#8a8a8a"
_DRAWING = threading.Lock()
"""The style of a drawing is the whole process's while it lasts."""

SUBMISSION_COLUMNS = ("time", "image", "author", "model_version", "was_trained_on", "counts", "organs",
                      "mean_dsc", "added_path_mm", "changed_voxels", "left_out", "trouble")  # fmt: skip
ORGAN_COLUMNS = ("n", "unchanged", "missed", "dsc", "added_path_mm", "changed_voxels", "changed_ml")


def edit_chart(found: Mapping[str, Any]) -> bytes:
    """Return a PNG: DSC and added path of each submission, their running medians, and the models.

    Args:
        found: What `lib.activelearning.edit_cost_curve.summary` returned.
    """
    shown = [one for one in found["submissions"] if one["mean_dsc"] is not None]
    with _DRAWING, styled_figure(7.4, 4.8) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        _panel(upper, shown, lambda numbers: 100 * numbers["mean_dsc"])
        _panel(lower, shown, lambda numbers: numbers["added_path_mm"])
        upper.set_ylabel("Mean DSC (%)")
        lower.set_ylabel("Added path (mm)")
        lower.set_ylim(bottom=0)
        lower.set_xlim(0.4, max(1, len(shown)) + 0.6)
        lower.set_xlabel("Submission")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _name_models(upper, shown)
        figure.suptitle(found["verdict"], fontsize=8.5, color=_GREY, wrap=True)
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
    """Draw one measure over the number of the submission, from 1 on."""
    for place in _new_models(shown):
        axis.axvline(place + 0.5, color=_GREY, linewidth=0.7, linestyle="--", zorder=1)
    for counts, colour, name in (
        (True, _POINT, "a submission"),
        (False, "white", "does not count: learned from before, or submitted again"),
    ):
        places = [n for n, one in enumerate(shown, start=1) if one["counts"] is counts]
        if places:
            axis.scatter(
                places,
                [value(shown[n - 1]) for n in places],
                s=16,
                color=colour,
                edgecolors=_POINT if counts else _GREY,
                linewidths=0.7,
                label=name,
                zorder=3,
            )
    known = [n for n, one in enumerate(shown, start=1) if one["running_median"]]
    if known:
        medians = [value(shown[n - 1]["running_median"]) for n in known]
        name = f"median of the last {WINDOW} that count"
        axis.plot(known, medians, "-", color=_MEDIAN, linewidth=1.4, label=name, zorder=2)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _new_models(shown: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return how many submissions lie before each one that another model served than the one before it."""
    versions = [one["model_version"] for one in shown]
    return [n for n in range(len(versions)) if n == 0 or versions[n] != versions[n - 1]]


def _name_models(axis: Any, shown: Sequence[Mapping[str, Any]]) -> None:
    """Write the end of each model's version, its hash, at its line."""
    for place in _new_models(shown):
        axis.annotate(
            shown[place]["model_version"].rpartition("-")[2][:12],
            (place + 0.5, 1.02),
            xycoords=("data", "axes fraction"),
            fontsize=6.5,
            color=_GREY,
            rotation=30,
            annotation_clip=False,
        )


def write_tables(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write `edit-cost.csv` and `edit-cost-organs.csv` into `folder`, atomically; return where they are.

    The first has a row for each submission, the second the medians of each organ.
    """
    submissions = [{**one, "left_out": " ".join(one["left_out"])} for one in found["submissions"]]
    organs = [{"organ": name, **numbers} for name, numbers in found["organs"].items()]
    return [
        _write_csv(folder / "edit-cost.csv", SUBMISSION_COLUMNS, submissions),
        _write_csv(folder / "edit-cost-organs.csv", ("organ", *ORGAN_COLUMNS), organs),
    ]


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path
