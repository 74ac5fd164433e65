"""One CT in, the contours of one model out."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.preprocessing import Pipeline, Prepared
from lib.models.registry import Model
from lib.networks.build import size_divisor

OVERLAP = 0.5
"""Share of a window that its neighbour sees again (nnU-Net's; Isensee et al. 2021)."""


@dataclass(frozen=True, slots=True)
class ContourResult:
    """What a model drew.

    Attributes:
        label: On the CT's own grid, voxel for voxel.
        version: The model's.
        seconds: Stage -> time it took: `prepare`, `network`, `restore`.
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
        device: Where the network runs.
        overlap: Share of each window that its neighbours see too.
    """
    clock = StageTimer()
    prepared = Pipeline(model.recipe).prepare(ct)
    clock.lap("prepare")
    found = contour_prepared(prepared, model, device=device, overlap=overlap)
    return replace(found, seconds={**clock.seconds, **found.seconds})


def contour_prepared(
    prepared: Prepared, model: Model, *, device: str = "cpu", overlap: float = OVERLAP
) -> ContourResult:
    """Return the organs that `model` finds in a CT that was prepared for its recipe, now or earlier."""
    pipeline = Pipeline(model.recipe)
    clock = StageTimer()
    found = probabilities(prepared, model, pipeline=pipeline, device=device, overlap=overlap)
    clock.lap("network")
    label = pipeline.restore(found, prepared)
    clock.lap("restore")
    return ContourResult(label, model.version, clock.seconds)


def probabilities(
    prepared: Prepared,
    model: Model,
    *,
    pipeline: Pipeline,
    device: str,
    overlap: float,
    between: Callable[[], object] | None = None,
) -> Tensor:
    """Return the softmax `(K, X, Y, Z)` over `prepared.hu`, from windows weighted by a Gaussian.

    `between` is called before each window: a place to wait for others.
    """
    image = torch.from_numpy(pipeline.window(prepared.hu))[None]
    window = tuple(
        min(crop, -(-size // step) * step)
        for crop, size, step in zip(
            model.recipe.crop_vox, image.shape[2:], size_divisor(model.recipe), strict=True
        )
    )
    forward = _forward(model, device, between)
    with torch.inference_mode():
        logits = sliding_window_inference(
            image,
            window,
            sw_batch_size=1,
            predictor=forward,
            overlap=overlap,
            mode="gaussian",
            padding_mode="constant",
            cval=-1.0,
            sw_device=device,
            device="cpu",
        )
        return torch.softmax(torch.as_tensor(logits)[0].float(), dim=0)


def _forward(
    model: Model, device: str, between: Callable[[], object] | None
) -> Callable[[Tensor], Tensor]:
    kind = torch.device(device).type

    def forward(window: Tensor) -> Tensor:
        if between is not None:
            between()
        window = window.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(kind, torch.bfloat16, enabled=fast_bfloat16(device)):
            logits: Tensor = model.network(window)
        return logits.float()

    return forward


def fast_bfloat16(device: str) -> bool:
    """Return whether `device` computes in bfloat16 faster than in float32."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


class StageTimer:
    """Seconds of each stage, rounded to milliseconds; a stage ends when it is named."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Say that `stage` ended now."""
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
