"""Charts of an evaluation, with published mean DSC per organ as reference marks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from matplotlib.ticker import FuncFormatter

from lib.evaluation.table import Evaluation, Row, stem
from lib.organs.table import ORGANS
from lib.reports.figures import GREY, INK, draw_grid, png, styled_figure

WHISKERS = (5, 95)
"""Percentiles at the ends of the whiskers."""
LOG_RATIO = 20.0
"""Ratio of the largest distance to the median above which the axis is logarithmic."""

_BOX = "#c9d8e8"
_POINT = "#2f5d8a"
_HUMAN_COLOUR = "#b5331b"
_MARKERS = ("o", "s", "^", "v", "D")

Values = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class BlandAltman:
    """Bland-Altman limits of agreement: volume differences in % of the mean of both volumes."""

    n: int
    """Number of contours, without missed organs."""
    bias_percent: float
    """Mean difference."""
    low_percent: float
    """Lower limit of agreement: mean less 1.96 standard deviations."""
    high_percent: float
    """Upper limit of agreement: mean plus 1.96 standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """Published mean DSC per organ of one method."""

    name: str
    citation: str
    dsc: Mapping[str, float]
    """TG-263 name -> mean DSC, 0 to 1."""


_PUBLISHED = yaml.safe_load(
    Path(__file__).with_name("published_dsc.yaml").read_text(encoding="utf-8")
)
NETWORKS = tuple(PublishedResult(**entry) for entry in _PUBLISHED["networks"])
HUMAN = PublishedResult(**_PUBLISHED["observers"])


def charts(evaluation: Evaluation) -> dict[str, bytes]:
    """Return the charts as PNGs, by the stem of the file name.

    Box charts per organ show the DSC with published results of networks on PDDCA and of two observers, the
    surface DSC at each organ's own tolerance, and the HD95 without missed organs. The last chart is the
    Bland-Altman plot of the volumes.
    """
    return {
        "dsc": _box_chart(
            evaluation,
            lambda row: 100 * row.dsc,
            label="Dice similarity coefficient, DSC (%)",
            highest=101.0,
            published=(*NETWORKS, HUMAN),
        ),
        "surface-dsc": _box_chart(
            evaluation,
            lambda row: 100 * row.surface_dsc,
            label="Surface DSC at the organ's tolerance (%)",
            highest=101.0,
            has_tolerances=True,
        ),
        "hd95": _box_chart(
            evaluation,
            lambda row: row.hd95_mm,
            label="95th percentile Hausdorff distance, HD95 (mm)",
        ),
        "volumes": volume_chart(evaluation),
    }


def bland_altman(rows: Sequence[Row]) -> BlandAltman:
    """Return the limits of agreement of the volumes (Bland and Altman, Stat Methods Med Res 1999)."""
    _, differences = _volumes(rows)
    if not differences.size:
        return BlandAltman(0, float("nan"), float("nan"), float("nan"))
    bias = float(differences.mean())
    spread = 1.96 * float(differences.std(ddof=1)) if differences.size > 1 else float("nan")
    return BlandAltman(int(differences.size), bias, bias - spread, bias + spread)


def volume_chart(evaluation: Evaluation) -> bytes:
    """Return a PNG: Bland-Altman plot of the volumes, difference in % of the mean over the mean."""
    limits = bland_altman(evaluation.rows)
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
        groups = list(dict.fromkeys(stem(organ) for organ in evaluation.organs))
        colours = mpl.colormaps["tab20"]
        for number, group in enumerate(groups):
            mean, difference = _volumes(
                [row for row in evaluation.rows if stem(row.organ) == group]
            )
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
        _set_log_scale(axis)
        axis.set_xlabel("Mean of reference and predicted volume (mL)")
        axis.set_ylabel("Prediction - reference (% of the mean)".replace("-", "\N{MINUS SIGN}"))
        limit = max(abs(value) for value in axis.get_ylim())
        axis.set_ylim(-limit, limit)
        if groups:
            figure.legend(loc="outside right upper", handletextpad=0.2)
        return png(figure)


def _box_chart(
    evaluation: Evaluation,
    value: Callable[[Row], float],
    *,
    label: str,
    highest: float | None = None,
    published: Sequence[PublishedResult] = (),
    has_tolerances: bool = False,
) -> bytes:
    organs = evaluation.organs
    samples = [np.array([value(row) for row in evaluation.rows_of(o)]) for o in organs]
    samples = [sample[np.isfinite(sample)] for sample in samples]
    with styled_figure(7.4, 1.3 + 0.29 * len(organs) + (0.35 if published else 0)) as figure:
        axis = figure.subplots()
        for place, sample in enumerate(samples):
            _draw_box(axis, place, sample)
        _draw_published(axis, organs, published)
        axis.set_yticks(range(len(organs)), organs)
        axis.set_ylim(len(organs) - 0.4, -0.6)
        axis.set_xlabel(label)
        draw_grid(axis, "x")
        axis.tick_params(axis="y", length=0)
        _set_scale(axis, samples, highest)
        if has_tolerances:
            tolerances = [f"{ORGANS[organ].tolerance_mm:.2f} mm" for organ in organs]
            _draw_notes(axis, ["tolerance", *tolerances])
        if axis.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=3, columnspacing=1.4, handletextpad=0.3)
        return png(figure)


def _draw_box(axis: Any, place: int, sample: Values) -> None:
    """Draw a box with its points; fewer than 4 points are drawn without a box."""
    line = {"color": INK, "linewidth": 0.7}
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
            whiskerprops=line,
            capprops=line,
        )
    if len(sample):
        spread = 0.14 * np.sin(np.arange(len(sample)) * 2.4)
        axis.scatter(sample, place + spread, s=7, color=_POINT, linewidths=0, alpha=0.75, zorder=3)


def _draw_published(axis: Any, organs: Sequence[str], published: Sequence[PublishedResult]) -> None:
    networks = [result for result in published if result is not HUMAN]
    for result in published:
        rows = [i for i, organ in enumerate(organs) if organ in result.dsc]
        if not rows:
            continue
        dsc_percent = [100 * result.dsc[organs[i]] for i in rows]
        if result is HUMAN:
            axis.vlines(
                dsc_percent,
                [i - 0.42 for i in rows],
                [i + 0.42 for i in rows],
                color=_HUMAN_COLOUR,
                linewidth=1.6,
                zorder=4,
                label=result.name,
            )
        else:
            axis.scatter(
                dsc_percent,
                [i + 0.36 for i in rows],
                marker=_MARKERS[networks.index(result) % len(_MARKERS)],
                s=15,
                facecolors="white" if result is not networks[-1] else GREY,
                edgecolors="#555555",
                linewidths=0.8,
                zorder=5,
                label=f"{result.name} (PDDCA)",
            )


def _set_scale(axis: Any, samples: Sequence[Values], highest: float | None) -> None:
    together = np.concatenate([*samples, np.zeros(0)])
    is_skewed = highest is None and together.size and together.min() > 0
    if is_skewed and together.max() > LOG_RATIO * np.median(together):
        _set_log_scale(axis)
    axis.set_xlim(right=highest)


def _set_log_scale(axis: Any) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_notes(axis: Any, notes: Sequence[str]) -> None:
    """Write a title and one note per row, right of the axis."""
    for place, text in enumerate(notes, start=-1):
        axis.annotate(
            text,
            (1.015, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7.5,
            color=GREY,
            annotation_clip=False,
        )


def _volumes(rows: Sequence[Row]) -> tuple[Values, Values]:
    """Return the mean of both volumes in mL, and their difference in % of this mean, without missed organs."""
    reference_ml = np.array([row.volume_reference_ml for row in rows if not row.is_missed])
    prediction_ml = np.array([row.volume_prediction_ml for row in rows if not row.is_missed])
    mean_ml = (reference_ml + prediction_ml) / 2
    return mean_ml, 100 * (prediction_ml - reference_ml) / mean_ml
