"""Contours over the CT, as a person would look at them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray, HuWindow, SpacingMm
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.resampling import closest_ras, in_ras_order
from lib.organs.table import ORGANS
from lib.storage.atomic_files import replacing

SOFT_TISSUE_HU: HuWindow = (-160.0, 240.0)
MARGIN_MM = 45.0
"""Shown around the organs."""
SURE = 0.05
"""Uncertainty that is not worth a colour."""
UNSURE = 0.5
"""Where the colours end: two equally likely classes of eight are 0.33, three are 0.53."""

Slice = npt.NDArray[np.generic]


def contour_picture(ct: CtVolume, label: LabelVolume, path: Path, *, title: str = "") -> None:
    """Write a PNG: an axial, a coronal and a sagittal slice through the organs, contours over the CT.

    Radiological convention: the patient's right is on the picture's left. The slices are those that cut
    most organs.
    """
    _picture(ct, label, path, title=title)


def uncertainty_picture(
    ct: CtVolume, label: LabelVolume, uncertainty: FloatArray, path: Path, *, title: str = ""
) -> None:
    """Write a PNG as `contour_picture` does, the uncertainty map in colour over the CT.

    Args:
        ct: The scan.
        label: Its contours.
        uncertainty: `(X, Y, Z)` on the scan's grid, 0 to 1; what lies below `SURE` is left clear.
        path: Where to write.
        title: Above the pictures.
    """
    _picture(ct, label, path, title=title, uncertainty=uncertainty)


def _picture(
    ct: CtVolume,
    label: LabelVolume,
    path: Path,
    *,
    title: str,
    uncertainty: FloatArray | None = None,
) -> None:
    spacing = _ras_spacing(ct.grid)
    hu, organs = in_ras_order(ct.array_hu, ct.grid), in_ras_order(label.array, ct.grid)
    view = _view(organs, spacing)
    hu, organs = hu[view], organs[view]
    unsure = None if uncertainty is None else in_ras_order(uncertainty, ct.grid)[view]
    figure = Figure(figsize=(13, 4.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    colours = None
    for axis, normal in zip(axes, (2, 1, 0), strict=True):
        across, up = [a for a in (0, 1, 2) if a != normal]
        where = _busiest(organs, normal)
        aspect = spacing[up] / spacing[across]
        _draw_ct(axis, _slice(hu, normal, where), aspect)
        if unsure is not None:
            colours = _draw_map(axis, _slice(unsure, normal, where), aspect)
        _draw_contours(
            axis, _slice(organs, normal, where), label, width=1.6 if unsure is None else 0.7
        )
        if normal != 0:
            axis.invert_xaxis()
        axis.set_axis_off()
    if colours is not None:
        bar = figure.colorbar(colours, ax=axes, shrink=0.8, pad=0.01, extend="max")
        bar.set_label("uncertainty (entropy, 0 to 1)", color="white")
        bar.ax.tick_params(colors="white")
    _name_organs(figure, label)
    if title:
        figure.suptitle(title, color="white", fontsize=10)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, facecolor="black", format="png")


def _slice(volume: Slice, normal: int, where: int) -> Slice:
    """Return slice number `where` along `normal`, its rows running up."""
    return np.asarray(np.moveaxis(volume, normal, 0)[where].T)


def _draw_ct(axis: Axes, picture: Slice, aspect: float) -> None:
    axis.imshow(
        picture,
        cmap="gray",
        vmin=SOFT_TISSUE_HU[0],
        vmax=SOFT_TISSUE_HU[1],
        origin="lower",
        aspect=aspect,
        interpolation="bilinear",
    )


def _draw_map(axis: Axes, unsure: Slice, aspect: float) -> AxesImage:
    return axis.imshow(
        np.ma.masked_less(unsure, SURE),
        cmap="inferno",
        vmin=0.0,
        vmax=UNSURE,
        alpha=0.7,
        origin="lower",
        aspect=aspect,
        interpolation="nearest",
    )


def _draw_contours(axis: Axes, drawn: Slice, label: LabelVolume, *, width: float) -> None:
    for name, value in label.labels.items():
        if (drawn == value).any():
            colour = np.array(ORGANS[name].colour_rgb) / 255
            axis.contour(drawn == value, [0.5], colors=[colour], linewidths=width)


def _name_organs(figure: Figure, label: LabelVolume) -> None:
    for row, name in enumerate(label.volumes_ml()):
        figure.text(
            0.004,
            0.93 - 0.05 * row,
            name,
            color=np.array(ORGANS[name].colour_rgb) / 255,
            fontsize=9,
        )


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
        return int(organs.shape[normal]) // 2
    areas = np.stack([(organs == v).sum(axis=others) for v in values])
    score = (areas > 0).sum(axis=0) * 1e6 + areas.sum(axis=0)
    return int(score.argmax())


def _ras_spacing(grid: Grid) -> SpacingMm:
    axes, _ = closest_ras(grid)
    x, y, z = (grid.spacing_mm[a] for a in axes)
    return (x, y, z)
