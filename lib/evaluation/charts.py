"""The report's charts, drawn as a journal would print them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FuncFormatter

from lib.evaluation.published_results import HUMAN, NETWORKS, PublishedResult
from lib.evaluation.table import Evaluation, Row, stem
from lib.reports.figures import GREY, INK, png, styled_figure

WHISKERS = (5, 95)
LOG_RATIO = 20.0
"""Distances are drawn on a logarithmic axis where the largest is this many times the median."""

_BOX = "#c9d8e8"
_POINT = "#2f5d8a"
_HUMAN_COLOUR = "#b5331b"
_MARKERS = ("o", "s", "^", "v", "D")


@dataclass(frozen=True, slots=True)
class BlandAltman:
    """Volume differences in % of the mean of both volumes.

    Attributes:
        n: Contours; missed organs have no volume to compare, and are not among them.
        bias_percent: Mean difference.
        low_percent: Lower limit of agreement, the mean less 1.96 standard deviations.
        high_percent: Upper limit of agreement.
    """

    n: int
    bias_percent: float
    low_percent: float
    high_percent: float


def dsc_chart(found: Evaluation) -> bytes:
    """Return a PNG: DSC per organ, with what networks reached on PDDCA and what two people reach."""
    return _box_chart(
        found,
        lambda row: 100 * row.dsc,
        label="Dice similarity coefficient, DSC (%)",
        limits=(None, 101.0),
        published=(*NETWORKS, HUMAN),
    )


def surface_dsc_chart(found: Evaluation) -> bytes:
    """Return a PNG: surface DSC per organ, each at its own tolerance."""
    return _box_chart(
        found,
        lambda row: 100 * row.surface_dsc,
        label="Surface DSC at the organ's tolerance (%)",
        limits=(None, 101.0),
        note=lambda row: f"{row.tolerance_mm:.2f} mm",
        note_title="tolerance",
    )


def hd95_chart(found: Evaluation) -> bytes:
    """Return a PNG: HD95 per organ, missed organs left out."""
    return _box_chart(
        found,
        lambda row: row.hd95_mm,
        label="95th percentile Hausdorff distance, HD95 (mm)",
        limits=(None, None),
    )


def bland_altman(rows: Sequence[Row]) -> BlandAltman:
    """Return the limits of agreement of the volumes (Bland and Altman, Stat Methods Med Res 1999)."""
    _, differences = _volumes(rows)
    if not differences.size:
        return BlandAltman(0, float("nan"), float("nan"), float("nan"))
    bias = float(differences.mean())
    spread = 1.96 * float(differences.std(ddof=1)) if differences.size > 1 else float("nan")
    return BlandAltman(int(differences.size), bias, bias - spread, bias + spread)


def volume_chart(found: Evaluation) -> bytes:
    """Return a PNG: the difference of both volumes over their mean, a Bland-Altman plot in per cent."""
    limits = bland_altman(found.rows)
    with styled_figure(7.4, 4.4) as figure:
        axis = figure.subplots()
        axis.axhline(0, color=INK, linewidth=0.6)
        for value, style, name in (
            (limits.bias_percent, "-", "bias"),
            (limits.low_percent, "--", "-1.96 SD"),
            (limits.high_percent, "--", "+1.96 SD"),
        ):
            if np.isfinite(value):
                axis.axhline(value, color=_HUMAN_COLOUR, linewidth=0.9, linestyle=style)
                axis.annotate(
                    f"{name}\n{value:+.1f} %".replace("-", "\N{MINUS SIGN}"),
                    (1.01, value),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    annotation_clip=False,
                    color=_HUMAN_COLOUR,
                    fontsize=7.5,
                )
        groups = list(dict.fromkeys(stem(organ) for organ in found.organs))
        colours = mpl.colormaps["tab20"]
        for number, group in enumerate(groups):
            mean, difference = _volumes([row for row in found.rows if stem(row.organ) == group])
            axis.scatter(
                mean,
                difference,
                s=20,
                marker=_MARKERS[number % len(_MARKERS)],
                color=colours(number * 2 % 20 + number * 2 // 20 % 2),
                edgecolors="white",
                linewidths=0.4,
                label=group,
                zorder=3,
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_xlabel("Mean of reference and predicted volume (mL)")
        axis.set_ylabel("Prediction - reference (% of the mean)".replace("-", "\N{MINUS SIGN}"))
        _symmetric(axis)
        if groups:
            figure.legend(loc="outside right upper", handletextpad=0.2)
        return png(figure)


def _box_chart(
    found: Evaluation,
    value: Callable[[Row], float],
    *,
    label: str,
    limits: tuple[float | None, float | None],
    published: Sequence[PublishedResult] = (),
    note: Callable[[Row], str] | None = None,
    note_title: str = "",
) -> bytes:
    organs = found.organs
    samples = [_known([value(row) for row in found.of(organ)]) for organ in organs]
    with styled_figure(7.4, 1.3 + 0.29 * len(organs) + (0.35 if published else 0)) as figure:
        axis = figure.subplots()
        for place, sample in enumerate(samples):
            _box(axis, place, sample)
        _reference_marks(axis, organs, published)
        axis.set_yticks(range(len(organs)), organs)
        axis.set_ylim(len(organs) - 0.4, -0.6)
        axis.set_xlabel(label)
        axis.grid(axis="x", color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
        _scale(axis, samples, limits)
        if note is not None:
            _notes(axis, [note(found.of(organ)[0]) for organ in organs], note_title)
        if axis.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=3, columnspacing=1.4, handletextpad=0.3)
        return png(figure)


def _box(axis: Any, place: int, sample: "np.ndarray[Any, Any]") -> None:
    """Draw a box with its points; points alone where they are too few for quartiles."""
    if len(sample) >= 4:
        axis.boxplot(
            [sample],
            positions=[place],
            orientation="horizontal",
            widths=0.56,
            whis=WHISKERS,
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": _BOX, "edgecolor": INK, "linewidth": 0.7},
            medianprops={"color": INK, "linewidth": 1.4},
            whiskerprops={"color": INK, "linewidth": 0.7},
            capprops={"color": INK, "linewidth": 0.7},
        )
    if len(sample):
        spread = 0.14 * np.sin(np.arange(len(sample)) * 2.4)
        axis.scatter(sample, place + spread, s=7, color=_POINT, linewidths=0, alpha=0.75, zorder=3)


def _reference_marks(
    axis: Any, organs: Sequence[str], published: Sequence[PublishedResult]
) -> None:
    networks = [line for line in published if line is not HUMAN]
    for line in published:
        places = [i for i, organ in enumerate(organs) if organ in line.dsc]
        if not places:
            continue
        at = [100 * line.dsc[organs[i]] for i in places]
        if line is HUMAN:
            axis.vlines(
                at,
                [i - 0.42 for i in places],
                [i + 0.42 for i in places],
                color=_HUMAN_COLOUR,
                linewidth=1.6,
                zorder=4,
                label=line.name,
            )
        else:
            axis.scatter(
                at,
                [i + 0.36 for i in places],
                marker=_MARKERS[networks.index(line) % len(_MARKERS)],
                s=15,
                facecolors="white" if line is not networks[-1] else GREY,
                edgecolors="#555555",
                linewidths=0.8,
                zorder=5,
                label=f"{line.name} (PDDCA)",
            )


def _scale(
    axis: Any,
    samples: Sequence["np.ndarray[Any, Any]"],
    limits: tuple[float | None, float | None],
) -> None:
    together = np.concatenate([*samples, np.zeros(0)])
    low, high = limits
    is_skewed = high is None and together.size and together.min() > 0
    if is_skewed and together.max() > LOG_RATIO * np.median(together):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low = None
    axis.set_xlim(left=low, right=high)


def _notes(axis: Any, notes: Sequence[str], title: str) -> None:
    """Write one note a row, right of the axis."""
    for place, text in enumerate([title, *notes], start=-1):
        axis.annotate(
            text,
            (1.015, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7.5,
            color=GREY,
            annotation_clip=False,
        )


def _symmetric(axis: Any) -> None:
    low, high = axis.get_ylim()
    most = max(abs(low), abs(high))
    axis.set_ylim(-most, most)


def _volumes(rows: Sequence[Row]) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Return the mean of both volumes in mL, and the difference in % of it, of organs that were not missed."""
    first = np.array([row.volume_reference_ml for row in rows if not row.is_missed])
    second = np.array([row.volume_prediction_ml for row in rows if not row.is_missed])
    mean = (first + second) / 2
    return mean, 100 * (second - first) / mean


def _known(values: Sequence[float]) -> "np.ndarray[Any, Any]":
    sample = np.array(values, float)
    return np.asarray(sample[np.isfinite(sample)])
