"""Pictures of the cases that agree least: both contours in three planes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from lib.evaluation.case_loading import Box, CaseContours, CroppedMask
from lib.evaluation.table import Evaluation, Row, stem, union_box
from lib.imaging.geometry import Grid
from lib.imaging.volumes import CtVolume
from lib.inference.resampling import closest_ras, in_ras_order
from lib.reports.ct_overlays import SOFT_TISSUE_HU
from lib.reports.figures import png, styled_figure

MARGIN_MM = 15.0
SMALLEST_VIEW_MM = 40.0
LARGEST_VIEW_MM = 170.0
"""Of long organs, such as the spinal canal, the part around the worst place is shown."""

REFERENCE_COLOUR = "#0072b2"
PREDICTION_COLOUR = "#d55e00"
"""Told apart by people with any colour vision (Okabe and Ito 2008)."""

_PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))
_ENDS = (("R", "L"), ("P", "A"), ("I", "S"))
_SCALE_BAR_MM = 10.0

Array = npt.NDArray[Any]


def worst_rows(found: Evaluation, count: int) -> list[Row]:
    """Return the `count` rows of lowest surface DSC, then DSC, at most one a pair of organs.

    The surface DSC is taken since the DSC alone would show the smallest organs only.
    """
    chosen: dict[str, Row] = {}
    for row in sorted(found.rows, key=lambda r: (r.surface_dsc, r.dsc, r.case, r.organ)):
        chosen.setdefault(stem(row.organ), row)
    return list(chosen.values())[:count]


def worst_picture(
    organ: str, reference: CaseContours, prediction: CaseContours, ct: CtVolume | None
) -> bytes:
    """Return a PNG of one organ: axial, coronal and sagittal, where the contours differ most.

    Radiological convention: the patient's right is on the picture's left. Without a CT the reference's other
    organs are outlined in grey, for orientation.

    Where the prediction misses the organ, the reference alone is drawn.

    Args:
        organ: TG-263 name; the reference contains it.
        reference: One side of a case.
        prediction: The other, on the same grid.
        ct: The case's CT, on the same grid.
    """
    grid = reference.grid
    axes, flips = closest_ras(grid)
    spacing = [grid.spacing_mm[a] for a in axes]
    box, cut = _view(reference.organs[organ], prediction.organs.get(organ), grid)
    where = [
        box[a].stop - 1 - cut[a] if flip else cut[a] - box[a].start
        for a, flip in zip(axes, flips, strict=True)
    ]
    volumes = [_turned(side.organs.get(organ), box, grid) for side in (reference, prediction)]
    if ct is None:
        volumes += [_turned(p, box, grid) for n, p in reference.organs.items() if n != organ]
    hu = None if ct is None else in_ras_order(ct.array_hu[box], grid)
    with styled_figure(7.4, 2.75) as figure:
        panels = figure.subplots(1, 3)
        for axis, (plane, normal) in zip(panels, _PLANES, strict=True):
            across, up = [a for a in (0, 1, 2) if a != normal]
            slices = [volume.take(where[normal], normal).T for volume in volumes]
            _background(axis, hu if hu is None else hu.take(where[normal], normal).T, slices)
            _contours(axis, slices)
            rows, columns = slices[0].shape
            axis.set_xlim(-0.5, columns - 0.5) if normal == 0 else axis.set_xlim(
                columns - 0.5, -0.5
            )
            axis.set_ylim(-0.5, rows - 0.5)
            axis.set_aspect(spacing[up] / spacing[across])
            _marks(axis, (*_ENDS[across], *_ENDS[up]), is_dark=hu is not None)
            if normal == 2:
                _scale_bar(axis, _SCALE_BAR_MM / (columns * spacing[0]), is_dark=hu is not None)
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


def _turned(piece: CroppedMask | None, box: Box, grid: Grid) -> Array:
    """Return the organ in `box`, axes in RAS order; False everywhere where it is missing."""
    shape = [b.stop - b.start for b in box]
    return in_ras_order(np.zeros(shape, bool) if piece is None else piece.within(box), grid)


def _view(
    reference: CroppedMask, prediction: CroppedMask | None, grid: Grid
) -> tuple[Box, list[int]]:
    """Return the cube to show, cut to the grid, and the voxel where the planes meet."""
    union = union_box([reference] if prediction is None else [reference, prediction])
    first = reference.within(union)
    differs = first if prediction is None else first ^ prediction.within(union)
    cut = [union[a].start + at for a, at in enumerate(_cut(differs, first, grid))]
    spacing = grid.spacing_mm
    extents = [(union[a].stop - union[a].start) * spacing[a] for a in range(3)]
    side_mm = min(max(*extents, SMALLEST_VIEW_MM - 2 * MARGIN_MM) + 2 * MARGIN_MM, LARGEST_VIEW_MM)
    slices = []
    for a in range(3):
        half = side_mm / 2 / spacing[a]
        fits = extents[a] <= side_mm
        middle = (union[a].start + union[a].stop) / 2 if fits else cut[a] + 0.5
        low, high = math.floor(middle - half), math.ceil(middle + half)
        slices.append(slice(max(0, low), min(grid.shape_vox[a], high)))
    return (slices[0], slices[1], slices[2]), cut


def _cut(differs: Array, reference: Array, grid: Grid) -> tuple[int, int, int]:
    """Return the voxel where the three planes meet: the axial slice first, then the lines within it.

    Slices that the reference does not reach show the other side alone: they are not taken.
    """
    x, y, z = closest_ras(grid)[0]
    inside = reference.any(axis=(x, y), keepdims=True)
    shown = differs & inside if (differs & inside).any() else reference
    cut = [0, 0, 0]
    for axis in (z, y, x):
        others = tuple(a for a in range(3) if a != axis)
        cut[axis] = int(shown.sum(axis=others).argmax())
        shown = shown.take([cut[axis]], axis)
    return cut[0], cut[1], cut[2]


def _background(axis: Any, hu: Array | None, masks: Sequence[Array]) -> None:
    """Show the CT; without one, where the first two of `masks` differ."""
    axis.set_facecolor("#fafafa")
    if hu is not None:
        low, high = SOFT_TISSUE_HU
        axis.imshow(hu, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
        return
    differs = np.where(masks[0] != masks[1], 1.0, np.nan)
    axis.imshow(differs, cmap="Greys", vmin=0, vmax=6, interpolation="nearest")


def _contours(axis: Any, masks: Sequence[Array]) -> None:
    """Outline the reference, the prediction, and other organs in grey below them."""
    lines = [(mask, "#b5b5b5", 0.6, "-") for mask in masks[2:]]
    lines += [(masks[0], REFERENCE_COLOUR, 1.3, "-"), (masks[1], PREDICTION_COLOUR, 1.3, "--")]
    for mask, colour, width, style in lines:
        if mask.any() and not mask.all() and min(mask.shape) > 1:
            axis.contour(mask, [0.5], colors=[colour], linewidths=width, linestyles=style)


def _marks(axis: Any, ends: tuple[str, str, str, str], *, is_dark: bool) -> None:
    """Write which way is left, right, down and up; take the ticks away."""
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.03), (0.5, 0.97))
    for letter, (x, y) in zip(ends, places, strict=True):
        axis.text(
            x,
            y,
            letter,
            ha="center" if x == 0.5 else ("left" if x < 0.5 else "right"),
            va="center" if y == 0.5 else ("bottom" if y < 0.5 else "top"),
            transform=axis.transAxes,
            fontsize=7,
            color="white" if is_dark else "#666666",
            path_effects=_outline(is_dark=is_dark),
        )
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(visible=True, color="#cccccc")


def _scale_bar(axis: Any, share: float, *, is_dark: bool) -> None:
    colour = "white" if is_dark else "#222222"
    axis.plot(
        [0.05, 0.05 + share], [0.05, 0.05], color=colour, linewidth=2, solid_capstyle="butt",
        transform=axis.transAxes, path_effects=_outline(is_dark=is_dark),
    )  # fmt: skip
    axis.text(
        0.05, 0.07, f"{_SCALE_BAR_MM:g} mm", fontsize=6.5, color=colour, transform=axis.transAxes,
        path_effects=_outline(is_dark=is_dark),
    )  # fmt: skip


def _outline(*, is_dark: bool) -> list[withStroke]:
    """Return a thin edge that keeps letters legible over bone as over air."""
    return [withStroke(linewidth=1.5, foreground="black" if is_dark else "#fafafa")]
