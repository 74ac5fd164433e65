"""Style of every matplotlib figure of this project, and its export as PNG."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150
INK = "#222222"
GREY = "#8a8a8a"
GRID = "#e6e6e6"
SERIES_COLOURS = (
    "#2f5d8a",
    "#b5331b",
    "#3c8a4a",
    "#8a5fb0",
    "#c58b1b",
    "#4aa3a8",
    GREY,
    "#d0679d",
    "#5b4a3a",
)
"""Colours of networks or strategies in one chart, in the order in which they are drawn."""

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 9,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextmanager
def styled_figure(width_in: float, height_in: float) -> Iterator[Figure]:
    """Yield an empty figure in the style of the reports.

    The style is a global setting of matplotlib: concurrent threads need a lock around this context.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure


def png(figure: Figure) -> bytes:
    """Return `figure` as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def draw_grid(axes: Any, which: str = "both") -> None:
    """Draw light grid lines behind the data: of the axis "x", of "y", or of "both"."""
    axes.grid(color=GRID, linewidth=0.6, axis=which)
    axes.set_axisbelow(True)
