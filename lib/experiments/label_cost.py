"""What a revealed label would have cost a person, in three counts."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray
from lib.inference.resampling import closest_ras


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The price of labels.

    Attributes:
        cases: How many.
        slices: Axial slices of the CT that hold at least one organ, summed.
        voxels: Voxels of the CT that are an organ, summed.
    """

    cases: int = 0
    slices: int = 0
    voxels: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Return the price of both."""
        return Cost(
            cases=self.cases + other.cases,
            slices=self.slices + other.slices,
            voxels=self.voxels + other.voxels,
        )


def cost_of(label: LabelArray, grid: Grid) -> Cost:
    """Return the price of one label volume; slices are counted along the patient's length."""
    axial = closest_ras(grid)[0][2]
    others = tuple(axis for axis in range(3) if axis != axial)
    inside = label > 0
    return Cost(
        cases=1,
        slices=int(np.count_nonzero(inside.any(axis=others))),
        voxels=int(np.count_nonzero(inside)),
    )


def total(costs: Iterable[Cost]) -> Cost:
    """Return the price of all of them."""
    return sum(costs, start=Cost())
