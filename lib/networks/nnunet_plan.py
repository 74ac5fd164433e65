"""nnU-Net's rule for a U-Net's depth: which axes each level pools, and with which kernels.

Isensee et al., Nature Methods 18 (2021), "nnU-Net: a self-configuring method for deep learning-based
biomedical image segmentation", rules "Architecture template" and "Patch size, batch size and network
topology" of the methods; the details that they leave open are those of the authors' published planner.
"""

import math
from dataclasses import dataclass

from lib.imaging.quantities import ShapeVox, SpacingMm

SMALLEST_MAP_VOX = 4
"""An axis is pooled only while at least this many voxels remain on it."""
NEAR_RATIO = 2.0
"""Axes whose voxel size is below this many times the finest one's are pooled, and convolved, together."""
LARGEST_CHANNELS = 320
"""Channels double at each level up to this many, in three dimensions."""


@dataclass(frozen=True, slots=True)
class UNetPlan:
    """A U-Net's levels, from the input's own resolution down.

    Attributes:
        kernels: Kernel of each level's convolutions.
        strides: Stride into each level; the first is `(1, 1, 1)`.
    """

    kernels: tuple[ShapeVox, ...]
    strides: tuple[ShapeVox, ...]

    @property
    def divisor(self) -> ShapeVox:
        """Return what sizes must divide by: the product of the strides on each axis."""
        x, y, z = (math.prod(on_axis) for on_axis in zip(*self.strides, strict=True))
        return x, y, z

    def channels(self, width: int) -> list[int]:
        """Return each level's channels, `width` at the first."""
        largest = max(width, LARGEST_CHANNELS)
        return [min(width * 2**level, largest) for level in range(len(self.strides))]


def plan_unet(crop_vox: ShapeVox, spacing_mm: SpacingMm) -> UNetPlan:
    """Return the levels of a U-Net for crops of `crop_vox` voxels of `spacing_mm`.

    A level pools, of the axes that keep `SMALLEST_MAP_VOX` voxels, those whose voxels are not yet twice as
    large as the finest of them; one axis alone is pooled only while it keeps a half more than that. An axis
    is convolved with a kernel of 3 from the level on where its voxels are not twice the finest.
    """
    size, spacing = list(crop_vox), list(spacing_mm)
    kernel = [1, 1, 1]
    kernels: list[ShapeVox] = []
    strides: list[ShapeVox] = [(1, 1, 1)]
    while pooled := _pooled_axes(size, spacing):
        near = [step < NEAR_RATIO * min(spacing) for step in spacing]
        kernel = [3 if is_near else old for is_near, old in zip(near, kernel, strict=True)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        stride = [2 if axis in pooled else 1 for axis in range(3)]
        strides.append((stride[0], stride[1], stride[2]))
        size = [-(-n // by) for n, by in zip(size, stride, strict=True)]
        spacing = [step * by for step, by in zip(spacing, stride, strict=True)]
    # The deepest level sees all three axes, however coarse one of them still is.
    return UNetPlan((*kernels, (3, 3, 3)), tuple(strides))


def _pooled_axes(size: list[int], spacing: list[float]) -> list[int]:
    large = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_MAP_VOX]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    pooled = [axis for axis in large if spacing[axis] < NEAR_RATIO * finest]
    if len(pooled) == 1 and size[pooled[0]] < 3 * SMALLEST_MAP_VOX:
        return []
    return pooled
