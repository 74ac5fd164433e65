"""Contours over the CT, as a person would look at them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lib.files import replacing
from lib.geometry import Grid
from lib.organs import ORGANS
from lib.transforms.frame import closest_ras, turned
from lib.units import HuWindow, SpacingMm
from lib.volumes import CtVolume, LabelVolume

SOFT_TISSUE_HU: HuWindow = (-160.0, 240.0)
MARGIN_MM = 45.0
"""Shown around the organs."""


def contour_picture(ct: CtVolume, label: LabelVolume, path: Path, *, title: str = "") -> None:
    """Write a PNG: an axial, a coronal and a sagittal slice through the organs, contours over the CT.

    Radiological convention: the patient's right is on the picture's left. The slices are those that cut
    most organs.
    """
    spacing = _ras_spacing(ct.grid)
    hu, organs = turned(ct.array_hu, ct.grid), turned(label.array, ct.grid)
    view = _view(organs, spacing)
    hu, organs = hu[view], organs[view]
    figure = Figure(figsize=(13, 4.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    for axis, normal in zip(axes, (2, 1, 0), strict=True):
        across, up = [a for a in (0, 1, 2) if a != normal]
        where = _busiest(organs, normal)
        picture, drawn = hu.take(where, normal).T, organs.take(where, normal).T
        axis.imshow(
            picture,
            cmap="gray",
            vmin=SOFT_TISSUE_HU[0],
            vmax=SOFT_TISSUE_HU[1],
            origin="lower",
            aspect=spacing[up] / spacing[across],
            interpolation="bilinear",
        )
        for name, value in label.labels.items():
            if (drawn == value).any():
                colour = np.array(ORGANS[name].colour_rgb) / 255
                axis.contour(drawn == value, [0.5], colors=[colour], linewidths=1.6)
        if normal != 0:
            axis.invert_xaxis()
        axis.set_axis_off()
    present = label.volumes_ml()
    for row, name in enumerate(present):
        figure.text(
            0.004,
            0.93 - 0.05 * row,
            name,
            color=np.array(ORGANS[name].colour_rgb) / 255,
            fontsize=9,
        )
    if title:
        figure.suptitle(title, color="white", fontsize=10)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, facecolor="black", format="png")


def _view(organs: npt.NDArray[np.generic], spacing_mm: SpacingMm) -> tuple[slice, slice, slice]:
    """Return the box of all organs with a margin; the whole volume where there is none."""
    inside = np.argwhere(organs != 0)
    shape = np.array(organs.shape)
    low, high = (inside.min(axis=0), inside.max(axis=0) + 1) if len(inside) else (0 * shape, shape)
    margin = np.ceil(MARGIN_MM / np.array(spacing_mm)).astype(int)
    low, high = np.maximum(0, low - margin), np.minimum(shape, high + margin)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return (x, y, z)


def _busiest(organs: npt.NDArray[np.generic], normal: int) -> int:
    """Return the slice along `normal` that cuts most organs, then most voxels of them."""
    others = tuple(a for a in range(3) if a != normal)
    values = [v for v in np.unique(organs).tolist() if v]
    if not values:
        return organs.shape[normal] // 2
    areas = np.stack([(organs == v).sum(axis=others) for v in values])
    score = (areas > 0).sum(axis=0) * 1e6 + areas.sum(axis=0)
    return int(score.argmax())


def _ras_spacing(grid: Grid) -> SpacingMm:
    axes, _ = closest_ras(grid)
    x, y, z = (grid.spacing_mm[a] for a in axes)
    return (x, y, z)
