"""Clicks as input channels of a network: one for clicks to add, one for clicks to remove.

A channel is -1 where no click is near, like air in the channels of the CT, and 1 at a click, with a Gaussian
between (Sakinis et al. 2019).
"""

from collections.abc import Sequence

import numpy as np

from lib.imaging.quantities import FloatArray, SpacingMm

_REACH = 3.0
"""Distance from a click, in standard deviations, beyond which its Gaussian is left out."""


def draw_click(
    channels: FloatArray,
    voxel: Sequence[int],
    *,
    is_add: bool,
    spacing_mm: SpacingMm,
    radius_mm: float,
) -> None:
    """Draw a click into `channels`, in place.

    Args:
        channels: `(2, X, Y, Z)`: clicks to add, clicks to remove.
        voxel: Index of the click.
        is_add: Which of both it is.
        spacing_mm: Voxel size.
        radius_mm: Standard deviation of the Gaussian.
    """
    box, exponent = [], np.zeros((1, 1, 1), np.float32)
    for axis, (index, size, step_mm) in enumerate(
        zip(voxel, channels.shape[1:], spacing_mm, strict=True)
    ):
        reach = int(_REACH * radius_mm / step_mm)
        low, high = max(0, index - reach), min(size, index + reach + 1)
        offsets_mm = (np.arange(low, high, dtype=np.float32) - index) * np.float32(step_mm)
        squares = (offsets_mm / radius_mm) ** 2
        exponent = exponent + squares.reshape([-1 if a == axis else 1 for a in range(3)])
        box.append(slice(low, high))
    part = channels[0 if is_add else 1][box[0], box[1], box[2]]
    np.maximum(part, 2 * np.exp(-exponent / 2) - 1, out=part)
