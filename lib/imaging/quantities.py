"""Type names of quantities, which state the unit and the order of a tuple or an array."""

from typing import Any

import numpy as np
import numpy.typing as npt

SpacingMm = tuple[float, float, float]
"""Distance between voxel centres along x, y, z, in mm."""

AnglesDeg = tuple[float, float, float]
"""Angles about x, y, z, in degrees."""

ShapeVox = tuple[int, int, int]
"""Number of voxels along x, y, z."""

HuWindow = tuple[float, float]
"""Lower and upper bound, in Hounsfield units."""

FloatArray = npt.NDArray[np.floating[Any]]
LabelArray = npt.NDArray[np.uint8]
"""`(X, Y, Z)`: a label value per voxel, 0 for background."""
MaskArray = npt.NDArray[np.bool_]
