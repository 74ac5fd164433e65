"""Pictures of contours over the CT: axial, coronal and sagittal slices, in radiological convention.

The patient's right is on the left of an axial or coronal picture.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray, HuWindow, SpacingMm
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.resampling import closest_ras, in_ras_order
from lib.organs.table import ORGANS
from lib.reports.figures import png, styled_figure
from lib.storage.atomic_files import replacing

SOFT_TISSUE_HU: HuWindow = (-160.0, 240.0)
"""CT window of all pictures, in HU."""
MARGIN_MM = 45.0
"""Margin around the organs in pictures of all organs, in mm."""
UNCERTAINTY_RANGE = (0.05, 0.5)
"""Uncertainty (normalised entropy) at the ends of the colour scale; lower values are transparent.

Two equally likely classes of eight have an uncertainty of 0.33, three of 0.53.
"""
REFERENCE_COLOUR = "#0072b2"
PREDICTION_COLOUR = "#d55e00"
"""Distinguishable with every type of colour vision (Okabe and Ito 2008)."""

_PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))
_ENDS = (("R", "L"), ("P", "A"), ("I", "S"))
"""Letters at the low and high end of each RAS axis."""
_SCALE_BAR_MM = 10.0

Array = npt.NDArray[Any]


def contour_picture(
    ct: CtVolume,
    label: LabelVolume,
    path: Path,
    *,
    title: str = "",
    uncertainty: FloatArray | None = None,
) -> None:
    """Write a PNG of all contours over the CT, in the three slices that cut most organs.

    Args:
        ct: The scan.
        label: Its contours.
        path: Path of the PNG.
        title: Title of the picture.
        uncertainty: `(X, Y, Z)` on the scan's grid, 0 to 1; drawn in colour over the CT.
    """
    spacing = ras_spacing(ct.grid)
    hu, organs = in_ras_order(ct.array_hu, ct.grid), in_ras_order(label.array, ct.grid)
    view = _view(organs, spacing)
    hu, organs = hu[view], organs[view]
    uncertainty_map = None if uncertainty is None else in_ras_order(uncertainty, ct.grid)[view]
    figure = Figure(figsize=(13, 4.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    colours = None
    for axis, (_, normal) in zip(axes, _PLANES, strict=True):
        across, up = [a for a in (0, 1, 2) if a != normal]
        index = _slice_with_most_organs(organs, normal)
        aspect = spacing[up] / spacing[across]
        _draw_ct(axis, _slice(hu, normal, index), origin="lower", aspect=aspect)
        if uncertainty_map is not None:
            low, high = UNCERTAINTY_RANGE
            colours = axis.imshow(
                np.ma.masked_less(_slice(uncertainty_map, normal, index), low),
                cmap="inferno",
                vmin=0.0,
                vmax=high,
                alpha=0.7,
                origin="lower",
                aspect=aspect,
                interpolation="nearest",
            )
        width = 1.6 if uncertainty is None else 0.7
        _draw_organs(axis, _slice(organs, normal, index), label, width=width)
        if normal != 0:
            axis.invert_xaxis()
        axis.set_axis_off()
    if colours is not None:
        bar = figure.colorbar(colours, ax=axes, shrink=0.8, pad=0.01, extend="max")
        bar.set_label("uncertainty (entropy, 0 to 1)", color="white")
        bar.ax.tick_params(colors="white")
    for row, name in enumerate(label.volumes_ml()):
        figure.text(0.004, 0.93 - 0.05 * row, name, color=_organ_colour(name), fontsize=9)
    if title:
        figure.suptitle(title, color="white", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="black", format="png")


def comparison_picture(
    masks: Sequence[Array], hu: Array | None, *, cut: tuple[int, int, int], spacing_mm: SpacingMm
) -> bytes:
    """Return a PNG of one organ: reference and prediction, over the CT or with their difference shaded.

    All arrays have the same shape, with their axes in RAS order.

    Args:
        masks: Reference, prediction, and other organs, which are outlined in grey.
        hu: The CT; None if there is none.
        cut: Index of the sagittal, coronal and axial slice to show.
        spacing_mm: Voxel size.
    """
    with styled_figure(7.4, 2.75) as figure:
        for axis, (plane, normal) in zip(figure.subplots(1, 3), _PLANES, strict=True):
            across, up = [a for a in (0, 1, 2) if a != normal]
            slices = [_slice(mask, normal, cut[normal]) for mask in masks]
            _draw_background(axis, hu if hu is None else _slice(hu, normal, cut[normal]), slices)
            _draw_outlines(axis, slices)
            rows, columns = slices[0].shape
            left_right = (-0.5, columns - 0.5)
            axis.set_xlim(left_right if normal == 0 else left_right[::-1])
            axis.set_ylim(-0.5, rows - 0.5)
            axis.set_aspect(spacing_mm[up] / spacing_mm[across])
            _draw_directions(axis, (*_ENDS[across], *_ENDS[up]), is_dark=hu is not None)
            if normal == 2:
                share = _SCALE_BAR_MM / (columns * spacing_mm[0])
                _draw_scale_bar(axis, share, is_dark=hu is not None)
            axis.set_title(plane, fontsize=8, pad=3)
        figure.legend(
            handles=[
                Line2D([], [], color=REFERENCE_COLOUR, label="reference"),
                Line2D([], [], color=PREDICTION_COLOUR, linestyle="--", label="prediction"),
            ],
            loc="outside lower center",
            ncols=2,
        )
        return png(figure)


def _slice(volume: Array, normal: int, index: int) -> Array:
    """Return slice number `index` along axis `normal`; rows run along the higher of the other two axes."""
    return np.asarray(np.moveaxis(volume, normal, 0)[index].T)


def _draw_ct(axis: Axes, picture: Array, **options: Any) -> None:
    low, high = SOFT_TISSUE_HU
    axis.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", **options)


def _draw_organs(axis: Axes, organs: Array, label: LabelVolume, *, width: float) -> None:
    for name, value in label.labels.items():
        if (organs == value).any():
            axis.contour(organs == value, [0.5], colors=[_organ_colour(name)], linewidths=width)


def _organ_colour(name: str) -> Array:
    return np.array(ORGANS[name].colour_rgb) / 255


def _view(organs: Array, spacing_mm: SpacingMm) -> tuple[slice, slice, slice]:
    """Return the box of all organs with a margin; the whole volume if there is no organ."""
    inside = np.argwhere(organs != 0)
    shape = np.array(organs.shape)
    low, high = (inside.min(axis=0), inside.max(axis=0) + 1) if len(inside) else (0 * shape, shape)
    margin = np.ceil(MARGIN_MM / np.array(spacing_mm)).astype(int)
    low, high = np.maximum(0, low - margin), np.minimum(shape, high + margin)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return (x, y, z)


def _slice_with_most_organs(organs: Array, normal: int) -> int:
    """Return the slice along `normal` that cuts most organs; of equal slices, that with most organ voxels."""
    in_plane = tuple(a for a in range(3) if a != normal)
    values = [v for v in np.unique(organs).tolist() if v]
    if not values:
        return int(organs.shape[normal]) // 2
    areas = np.stack([(organs == v).sum(axis=in_plane) for v in values])
    score = (areas > 0).sum(axis=0) * 1e6 + areas.sum(axis=0)
    return int(score.argmax())


def ras_spacing(grid: Grid) -> SpacingMm:
    """Return the voxel size of `grid` in mm, its axes in RAS order."""
    axes, _ = closest_ras(grid)
    x, y, z = (grid.spacing_mm[a] for a in axes)
    return (x, y, z)


def _draw_background(axis: Any, hu: Array | None, masks: Sequence[Array]) -> None:
    """Draw the CT; without one, shade where the first two of `masks` differ."""
    axis.set_facecolor("#fafafa")
    if hu is not None:
        _draw_ct(axis, hu)
        return
    differs = np.where(masks[0] != masks[1], 1.0, np.nan)
    axis.imshow(differs, cmap="Greys", vmin=0, vmax=6, interpolation="nearest")


def _draw_outlines(axis: Any, masks: Sequence[Array]) -> None:
    """Outline the reference, the prediction, and below them the other organs in grey."""
    lines = [(mask, "#b5b5b5", 0.6, "-") for mask in masks[2:]]
    lines += [(masks[0], REFERENCE_COLOUR, 1.3, "-"), (masks[1], PREDICTION_COLOUR, 1.3, "--")]
    for mask, colour, width, style in lines:
        if mask.any() and not mask.all() and min(mask.shape) > 1:
            axis.contour(mask, [0.5], colors=[colour], linewidths=width, linestyles=style)


def _draw_directions(axis: Any, ends: tuple[str, str, str, str], *, is_dark: bool) -> None:
    """Write the patient's directions at left, right, bottom and top; remove the ticks."""
    # In axes coordinates: left and right of the picture as shown, even if the x axis is inverted.
    positions = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.03), (0.5, 0.97))
    for letter, (x, y) in zip(ends, positions, strict=True):
        axis.text(
            x,
            y,
            letter,
            ha="center" if x == 0.5 else ("left" if x < 0.5 else "right"),
            va="center" if y == 0.5 else ("bottom" if y < 0.5 else "top"),
            transform=axis.transAxes,
            fontsize=7,
            color="white" if is_dark else "#666666",
            path_effects=_halo(is_dark=is_dark),
        )
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(visible=True, color="#cccccc")


def _draw_scale_bar(axis: Any, share: float, *, is_dark: bool) -> None:
    style = {
        "color": "white" if is_dark else "#222222",
        "transform": axis.transAxes,
        "path_effects": _halo(is_dark=is_dark),
    }
    axis.plot([0.05, 0.05 + share], [0.05, 0.05], linewidth=2, solid_capstyle="butt", **style)
    axis.text(0.05, 0.07, f"{_SCALE_BAR_MM:g} mm", fontsize=6.5, **style)


def _halo(*, is_dark: bool) -> list[withStroke]:
    """Return a thin edge that keeps text legible over both bone and air."""
    return [withStroke(linewidth=1.5, foreground="black" if is_dark else "#fafafa")]
