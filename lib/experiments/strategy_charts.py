"""Learning curves as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lib.experiments.strategy_ranking import Curve, Numbers
from lib.reports.figures import png, styled_figure

_COLOURS = (
    "#8a8a8a", "#222222", "#2f5d8a", "#b5331b", "#3c8a4a", "#8a5fb0", "#c58b1b", "#4aa3a8", "#d0679d"
)  # fmt: skip


def learning_curves(found: Sequence[Curve]) -> bytes:
    """Return a PNG: mean DSC over labelled cases, and over foreground voxels; a thin line for each seed."""
    strategies = list(dict.fromkeys(curve.strategy for curve in found))
    with styled_figure(9.5, 4.0) as figure:
        axes: Any = figure.subplots(1, 2, sharey=True)
        for number, strategy in enumerate(strategies):
            own = [curve for curve in found if curve.strategy == strategy]
            colour = _COLOURS[number % len(_COLOURS)]
            _lines(axes[0], [(c.cases, 100 * c.dsc) for c in own], colour, strategy)
            _lines(axes[1], [(c.voxels / 1e3, 100 * c.dsc) for c in own], colour, strategy)
        axes[0].set_xlabel("Labelled cases")
        axes[0].set_ylabel("DSC, mean over organs on the test cases (%)")
        axes[1].set_xlabel("Labelled foreground voxels (thousands)")
        cases = found[0].cases
        axes[0].set_xticks(cases, [f"{value:g}" for value in cases])
        axes[0].legend(loc="lower right")
        for axis in axes:
            axis.grid(color="#e6e6e6", linewidth=0.6)
            axis.set_axisbelow(True)
        return png(figure)


def _lines(axis: Any, curves: Sequence[tuple[Numbers, Numbers]], colour: str, name: str) -> None:
    if len(curves) > 1:
        for x, y in curves:
            axis.plot(x, y, "-", color=colour, linewidth=0.5, alpha=0.45)
    x, y = (np.mean([curve[part] for curve in curves], axis=0) for part in (0, 1))
    axis.plot(x, y, "-o", color=colour, linewidth=1.6, markersize=3.5, label=name)
