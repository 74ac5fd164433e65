"""Contours of one model on one CT, in a single pass of a sliding window."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.preprocessing import Pipeline, Prepared
from lib.models.registry import Model
from lib.networks.build import size_divisor

OVERLAP = 0.5
"""Share of a window that its neighbour covers too (nnU-Net's value; Isensee et al. 2021)."""

WINDOWS_AT_ONCE = 4
"""Number of windows in one call of the network.

PyTorch computes small float32 convolutions of a single image with a slow kernel of its own on a processor: four
windows together take a fifth of the time of four windows one by one.
"""

_SIGMA = 0.125
"""Standard deviation of the Gaussian weight of a window, as a share of the window's side."""


@dataclass(frozen=True, slots=True)
class ContourResult:
    """Contours of a model.

    Attributes:
        label: The contours on the CT's own grid, voxel for voxel.
        version: Version of the model.
        seconds: Stage -> its duration; the stages are `prepare`, `network` and `restore`.
    """

    label: LabelVolume
    version: str
    seconds: Mapping[str, float]


def contour(
    ct: CtVolume, model: Model, *, device: str = "cpu", overlap: float = OVERLAP
) -> ContourResult:
    """Return the organs that `model` finds in `ct`.

    Args:
        ct: The scan; any orientation, any voxel size.
        model: Network and recipe.
        device: Device that the network runs on.
        overlap: Share of each window that its neighbours cover too.
    """
    timer = StageTimer()
    prepared = Pipeline(model.recipe).prepare(ct)
    timer.lap("prepare")
    result = contour_prepared(prepared, model, device=device, overlap=overlap)
    return replace(result, seconds={**timer.seconds, **result.seconds})


def contour_prepared(
    prepared: Prepared, model: Model, *, device: str = "cpu", overlap: float = OVERLAP
) -> ContourResult:
    """Return the organs that `model` finds in a CT that is already prepared for its recipe."""
    pipeline = Pipeline(model.recipe)
    timer = StageTimer()
    softmax = probabilities(prepared, model, pipeline=pipeline, device=device, overlap=overlap)
    timer.lap("network")
    label = pipeline.restore(softmax, prepared)
    timer.lap("restore")
    return ContourResult(label, model.version, timer.seconds)


def probabilities(
    prepared: Prepared,
    model: Model,
    *,
    pipeline: Pipeline,
    device: str,
    overlap: float,
    before_window: Callable[[], object] | None = None,
) -> Tensor:
    """Return the softmax `(K, X, Y, Z)` over `prepared.hu`, from windows with Gaussian weights.

    `before_window` is called before each call of the network: background work can pause there.
    """
    image = torch.from_numpy(pipeline.window(prepared.hu))[None]
    window = [
        min(crop, -(-size // step) * step)
        for crop, size, step in zip(
            model.recipe.crop_vox, image.shape[2:], size_divisor(model.recipe), strict=True
        )
    ]
    predict = _predictor(model, device, before_window)
    with torch.inference_mode():
        logits = sliding_window(image, window, predict, overlap=overlap, device=device)
        return torch.softmax(logits[0].float(), dim=0)


def sliding_window(
    image: Tensor,
    window: Sequence[int],
    predict: Callable[[Tensor], Tensor],
    *,
    overlap: float,
    device: str,
) -> Tensor:
    """Return the weighted mean of the logits of all windows, `(1, K, X, Y, Z)`, on the CPU.

    Equals MONAI's `sliding_window_inference` with Gaussian weights bit for bit. It is written here because
    importing `monai` costs ten seconds of processor time, in every worker process.

    Args:
        image: `(1, C, X, Y, Z)`; where it is smaller than the window it is padded with -1, the value of air.
        window: Size of a window along X, Y and Z.
        predict: Network: `(N, C, *window)` -> logits `(N, K, *window)`, N up to `WINDOWS_AT_ONCE`.
        overlap: Share of a window that its neighbour covers too, below 1.
        device: Device of the windows.
    """
    before = [max(side - size, 0) // 2 for side, size in zip(window, image.shape[2:], strict=True)]
    inside = [slice(b, b + size) for b, size in zip(before, image.shape[2:], strict=True)]
    padding: list[int] = []
    for b, side, size in zip(before, window, image.shape[2:], strict=True):
        padding = [b, max(side - size, 0) - b, *padding]
    image = functional.pad(image, padding, value=-1.0)
    weight = _gaussian_weight(window, device)
    starts = [
        _window_starts(size, side, overlap)
        for size, side in zip(image.shape[2:], window, strict=True)
    ]
    boxes = [
        tuple(slice(c, c + side) for c, side in zip(corner, window, strict=True))
        for corner in itertools.product(*starts)
    ]
    total, weights = torch.zeros(()), torch.zeros((1, 1, *image.shape[2:]))
    for first in range(0, len(boxes), WINDOWS_AT_ONCE):
        batch = boxes[first : first + WINDOWS_AT_ONCE]
        windows = torch.cat([image[:, :, x, y, z] for x, y, z in batch])
        logits = (predict(windows.to(device)) * weight).cpu()
        if total.dim() == 0:
            total = torch.zeros((1, logits.shape[1], *image.shape[2:]))
        for (x, y, z), one in zip(batch, logits, strict=True):
            total[0, :, x, y, z] += one
            weights[:, :, x, y, z] += weight.cpu()
    total /= weights
    x, y, z = inside
    return total[:, :, x, y, z]


def _window_starts(size: int, side: int, overlap: float) -> list[int]:
    """Return the first voxel of each window along one axis; the last window ends with the image."""
    step = max(1, int(side * (1 - overlap)))
    return [min(start, size - side) for start in range(0, size - side + step, step)]


def _gaussian_weight(window: Sequence[int], device: str) -> Tensor:
    """Return the weight of each voxel of a window: a Gaussian about its centre, at least 0.001."""
    weight = torch.ones((), device=device)
    for side in window:
        x = torch.arange(-(side - 1) / 2, (side - 1) / 2 + 1, dtype=torch.float, device=device)
        gaussian = torch.exp(x**2 / (-2 * (side * _SIGMA) ** 2))
        weight = weight[..., None] * gaussian if weight.dim() else gaussian
    return weight.clamp(min=max(float(weight.min()), 1e-3))


def _predictor(
    model: Model, device: str, before_window: Callable[[], object] | None
) -> Callable[[Tensor], Tensor]:
    kind = torch.device(device).type

    def predict(windows: Tensor) -> Tensor:
        if before_window is not None:
            before_window()
        number = len(windows)
        if kind == "cpu" and number == 1:  # even two windows take less time than one
            windows = windows.expand(2, *windows.shape[1:])
        windows = windows.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(kind, torch.bfloat16, enabled=fast_bfloat16(device)):
            logits: Tensor = model.network(windows)
        return logits[:number].float()

    return predict


def fast_bfloat16(device: str) -> bool:
    """Return whether `device` computes in bfloat16 faster than in float32."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


class StageTimer:
    """Duration of each stage in seconds, rounded to milliseconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Record the end of `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
