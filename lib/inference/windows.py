"""The sliding window: a network applied to overlapping windows of an image, and the mean of its logits."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lib.backends.interface import windows_at_once
from lib.inference.resampling import Box

_SIGMA = 0.125
"""Standard deviation of the Gaussian weight of a window, as a share of the window's side."""

POSSIBLE = 0.01
"""Probability of an organ, relative to that of background, above which a voxel may belong to the organ."""

MARGIN_VOX = 2
"""Distance of such a voxel from a window within which the window is computed too."""


def sliding_window(
    image: Tensor,
    window: Sequence[int],
    predict: Callable[[Tensor], Tensor],
    *,
    overlap: float,
    is_localised: bool = False,
) -> Tensor:
    """Return the weighted mean of the logits of the windows, `(1, K, X, Y, Z)`, on the processor.

    With all windows this equals MONAI's `sliding_window_inference` with Gaussian weights bit for bit. It is
    written here because importing `monai` costs ten seconds of processor time, in every worker process.

    A localised computation begins with the fewest windows that cover the image. Of the others, only those are
    computed in which an organ is possible, until no further one is. An organ therefore has the same windows,
    and the same contour, as without; only the certainty of background far from any organ may differ.

    Args:
        image: `(1, C, X, Y, Z)`; where it is smaller than the window it is padded with -1, the value of air.
        window: Size of a window along X, Y and Z.
        predict: Network: `(N, C, *window)` -> logits `(N, K, *window)` on any device.
        overlap: Share of a window that its neighbour covers too, below 1.
        is_localised: Whether windows without a possible organ may be left out.
    """
    before = [max(side - size, 0) // 2 for side, size in zip(window, image.shape[2:], strict=True)]
    inside = [slice(b, b + size) for b, size in zip(before, image.shape[2:], strict=True)]
    padding: list[int] = []
    for b, side, size in zip(before, window, image.shape[2:], strict=True):
        padding = [b, max(side - size, 0) - b, *padding]
    if any(padding):
        image = functional.pad(image, padding, value=-1.0)
    starts = [
        _window_starts(size, side, overlap)
        for size, side in zip(image.shape[2:], window, strict=True)
    ]
    mean = _WindowMean(image, window, predict)
    if is_localised:
        _add_where_organs_are(mean, starts, window)
    else:
        mean.add(_boxes(starts, window))
    x, y, z = inside
    return mean.result()[:, :, x, y, z]


def window_calls(shape: Sequence[int], window: Sequence[int], *, overlap: float) -> int:
    """Return how often `sliding_window` calls the network at most, for an image of a shape `(X, Y, Z)`."""
    starts = [
        _window_starts(max(size, side), side, overlap)
        for size, side in zip(shape, window, strict=True)
    ]
    return -(-math.prod(map(len, starts)) // windows_at_once(window))


class _WindowMean:
    """Weighted mean of the logits of the windows that were added so far."""

    def __init__(
        self, image: Tensor, window: Sequence[int], predict: Callable[[Tensor], Tensor]
    ) -> None:
        self._image = image
        self._predict = predict
        self._weight = _gaussian_weight(window)
        self._at_once = windows_at_once(window)
        self._total = torch.zeros(())
        self._weights = torch.zeros((1, 1, *image.shape[2:]))

    def add(self, boxes: Sequence[Box]) -> None:
        """Compute the windows in `boxes`, and add them."""
        for first in range(0, len(boxes), self._at_once):
            batch = boxes[first : first + self._at_once]
            logits = self._predict(torch.cat([self._image[:, :, x, y, z] for x, y, z in batch]))
            weighted = (logits * self._weight.to(logits.device)).cpu()
            if self._total.dim() == 0:
                self._total = torch.zeros((1, logits.shape[1], *self._image.shape[2:]))
            for (x, y, z), one in zip(batch, weighted, strict=True):
                self._total[0, :, x, y, z] += one
                self._weights[:, :, x, y, z] += self._weight

    def possible_organs(self, box: Box) -> Tensor:
        """Return `(X, Y, Z)`: the voxels of `box` in which an organ is `POSSIBLE`."""
        x, y, z = box
        total = self._total[0, :, x, y, z]
        return total[1:].amax(dim=0) - total[0] > math.log(POSSIBLE) * self._weights[0, 0, x, y, z]

    def result(self) -> Tensor:
        """Return the mean; no window can be added afterwards."""
        return self._total.div_(self._weights)


def _add_where_organs_are(
    mean: _WindowMean, starts: Sequence[Sequence[int]], window: Sequence[int]
) -> None:
    boxes = _boxes([_covering(s, side) for s, side in zip(starts, window, strict=True)], window)
    remaining = [box for box in _boxes(starts, window) if box not in boxes]
    sizes = [axis[-1] + side for axis, side in zip(starts, window, strict=True)]
    possible = torch.zeros(sizes, dtype=torch.bool)
    while boxes:
        mean.add(boxes)
        for x, y, z in boxes:
            possible[x, y, z] |= mean.possible_organs((x, y, z))
        boxes = [box for box in remaining if bool(possible[_widened(box)].any())]
        remaining = [box for box in remaining if box not in boxes]


def _widened(box: Box) -> Box:
    x, y, z = (slice(max(0, side.start - MARGIN_VOX), side.stop + MARGIN_VOX) for side in box)
    return (x, y, z)


def _covering(starts: Sequence[int], side: int) -> list[int]:
    """Return the fewest of the sorted `starts` whose windows cover all that all windows cover."""
    chosen = [starts[0]]
    while chosen[-1] != starts[-1]:
        chosen.append(max(start for start in starts if start <= chosen[-1] + side))
    return chosen


def _boxes(starts: Iterable[Sequence[int]], window: Sequence[int]) -> list[Box]:
    boxes = []
    for corner in itertools.product(*starts):
        x, y, z = (slice(c, c + side) for c, side in zip(corner, window, strict=True))
        boxes.append((x, y, z))
    return boxes


def _window_starts(size: int, side: int, overlap: float) -> list[int]:
    """Return the first voxel of each window along one axis; the last window ends with the image."""
    step = max(1, int(side * (1 - overlap)))
    return [min(start, size - side) for start in range(0, size - side + step, step)]


def _gaussian_weight(window: Sequence[int]) -> Tensor:
    """Return the weight of each voxel of a window: a Gaussian about its centre, at least 0.001."""
    weight = torch.ones(())
    for side in window:
        x = torch.arange(-(side - 1) / 2, (side - 1) / 2 + 1, dtype=torch.float)
        gaussian = torch.exp(x**2 / (-2 * (side * _SIGMA) ** 2))
        weight = weight[..., None] * gaussian if weight.dim() else gaussian
    return weight.clamp(min=max(float(weight.min()), 1e-3))
