"""The interface of a backend, and the number of windows that it gets at once."""

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

WINDOWS_AT_ONCE = 4
"""Largest number of windows in one call of a network.

PyTorch computes small float32 convolutions of a single image with a slow kernel of its own on a processor: four
windows together take a fifth of the time of four windows one by one.
"""

VOXELS_AT_ONCE = WINDOWS_AT_ONCE * 64**3
"""Largest number of voxels in one call, if that is more than one window: it bounds the memory."""


class Backend(Protocol):
    """One way to compute one network."""

    @property
    def name(self) -> str:
        """Name of the backend, as in the setting `backend`."""

    def run(self, windows: Tensor) -> Tensor:
        """Return the logits `(N, K, X, Y, Z)`, float32, of `windows`.

        Args:
            windows: `(N, C, X, Y, Z)`, float32, on the processor; N is at most `windows_at_once`.
        """


def windows_at_once(window: Sequence[int]) -> int:
    """Return how many windows of a size a network gets at once."""
    return max(1, min(WINDOWS_AT_ONCE, VOXELS_AT_ONCE // math.prod(window)))
