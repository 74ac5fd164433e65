"""Charts of an evaluation, with published mean DSC per organ as reference marks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FuncFormatter

from lib.evaluation.table import Evaluation, Row, stem
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


_PDDCA_ORDER = ("Brainstem", "OpticChiasm", "Bone_Mandible", "OpticNrv_L", "OpticNrv_R", "Parotid_L",
                "Parotid_R", "Glnd_Submand_L", "Glnd_Submand_R")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """Published mean DSC per organ of one method."""

    name: str
    """Name in the chart."""
    citation: str
    """Publication."""
    dsc: Mapping[str, float]
    """TG-263 name -> mean DSC, 0 to 1."""


def _pddca(name: str, citation: str, *percent: float) -> PublishedResult:
    dsc = {o: round(p / 100, 4) for o, p in zip(_PDDCA_ORDER, percent, strict=True)}
    return PublishedResult(name=name, citation=citation, dsc=dsc)


NETWORKS = (
    _pddca(
        "AnatomyNet 2018",
        "Zhu et al., AnatomyNet: deep learning for fast and fully automated whole-volume segmentation of head "
        "and neck anatomy, Med Phys 46:576-589, 2019 (arXiv 2018)",
        86.7, 53.2, 92.5, 72.1, 70.6, 88.1, 87.4, 81.4, 81.3,
    ),
    _pddca(
        "FocusNet 2019",
        "Gao et al., FocusNet: imbalanced large and small organ segmentation with an end-to-end deep neural "
        "network for head and neck CT images, MICCAI 2019",
        87.5, 59.6, 93.5, 73.5, 74.4, 86.3, 87.9, 79.8, 80.1,
    ),
    _pddca(
        "UaNet 2019",
        "Tang et al., Clinically applicable deep learning framework for organs at risk delineation in CT "
        "images, Nat Mach Intell 1:480-491, 2019",
        87.5, 61.5, 95.0, 74.8, 72.3, 88.7, 87.5, 82.3, 81.5,
    ),
    _pddca(
        "SOARS 2020",
        "Guo et al., Organ at risk segmentation for head and neck cancer using stratified learning and neural "
        "architecture search, CVPR 2020",
        87.6, 64.9, 95.1, 75.3, 74.6, 88.2, 88.2, 84.2, 83.8,
    ),
    _pddca(
        "OrganNet2.5D 2021",
        "Chen et al., OrganNet2.5D, MICCAI 2021 (arXiv 2109.12634)",
        87.2, 66.3, 92.2, 75.0, 74.1, 86.7, 85.8, 82.1, 82.1,
    ),
)  # fmt: skip
"""Mean DSC of networks on the test set of PDDCA.

Except for OrganNet2.5D and the mean of UaNet, values per organ are quoted from secondary sources. Training sets
differ: the values are landmarks, not a comparison on the same patients.
"""

HUMAN = PublishedResult(
    name="Two observers (TCIA, 28 scans)",
    citation="Radiographer against oncologist on 28 scans of TCIA, expert masks of Nikolov et al. 2021",
    dsc={"Brainstem": 0.900, "Bone_Mandible": 0.942, "OpticNrv_L": 0.793, "OpticNrv_R": 0.784,
         "Parotid_L": 0.871, "Parotid_R": 0.874, "Glnd_Submand_L": 0.881, "Glnd_Submand_R": 0.876,
         "SpinalCord": 0.843, "Cochlea_L": 0.749, "Cochlea_R": 0.696},
)  # fmt: skip
"""Agreement of two observers, measured for this project on all 28 scans of the expert masks."""


def dsc_chart(evaluation: Evaluation) -> bytes:
    """Return a PNG: DSC per organ, with published results of networks on PDDCA and of two observers."""
    return _box_chart(
        evaluation,
        lambda row: 100 * row.dsc,
        label="Dice similarity coefficient, DSC (%)",
        limits=(None, 101.0),
        published=(*NETWORKS, HUMAN),
    )


def surface_dsc_chart(evaluation: Evaluation) -> bytes:
    """Return a PNG: surface DSC per organ, each at its own tolerance."""
    return _box_chart(
        evaluation,
        lambda row: 100 * row.surface_dsc,
        label="Surface DSC at the organ's tolerance (%)",
        limits=(None, 101.0),
        note=lambda row: f"{row.tolerance_mm:.2f} mm",
        note_title="tolerance",
    )


def hd95_chart(evaluation: Evaluation) -> bytes:
    """Return a PNG: HD95 per organ, missed organs left out."""
    return _box_chart(
        evaluation,
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
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
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
    limits: tuple[float | None, float | None],
    published: Sequence[PublishedResult] = (),
    note: Callable[[Row], str] | None = None,
    note_title: str = "",
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
        _set_scale(axis, samples, limits)
        if note is not None:
            _draw_notes(axis, [note(evaluation.rows_of(organ)[0]) for organ in organs], note_title)
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


def _set_scale(
    axis: Any, samples: Sequence[Values], limits: tuple[float | None, float | None]
) -> None:
    together = np.concatenate([*samples, np.zeros(0)])
    low, high = limits
    is_skewed = high is None and together.size and together.min() > 0
    if is_skewed and together.max() > LOG_RATIO * np.median(together):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low = None
    axis.set_xlim(left=low, right=high)


def _draw_notes(axis: Any, notes: Sequence[str], title: str) -> None:
    """Write one note per row, right of the axis."""
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


def _volumes(rows: Sequence[Row]) -> tuple[Values, Values]:
    """Return the mean of both volumes in mL, and their difference in % of it; missed organs are left out."""
    first = np.array([row.volume_reference_ml for row in rows if not row.is_missed])
    second = np.array([row.volume_prediction_ml for row in rows if not row.is_missed])
    mean = (first + second) / 2
    return mean, 100 * (second - first) / mean
