"""Contours of one model on one CT, in a single pass of a sliding window."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.backends.eager import EagerBackend
from lib.backends.interface import Backend
from lib.imaging.quantities import FloatArray
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.preprocessing import Pipeline, Prepared
from lib.inference.uncertainty import ModelUncertainty
from lib.inference.windows import sliding_window, window_calls
from lib.jobs.progress import Step
from lib.models.registry import Model
from lib.networks.build import size_divisor
from lib.recipes.schema import Recipe

OVERLAP = 0.5
"""Share of a window that its neighbour covers too (nnU-Net's value; Isensee et al. 2021)."""

OnProbabilities = Callable[[Prepared, Tensor], object]
"""Gets a prepared CT and the softmax `(K, X, Y, Z)` over it."""


@dataclass(frozen=True, slots=True)
class ContourResult:
    """Contours of a model.

    Attributes:
        label: The contours on the CT's own grid, voxel for voxel.
        version: Version of the model.
        seconds: Stage -> its duration; the stages are `prepare`, `network` and `restore`.
        uncertainty: Uncertainty of the model; None if it was not asked for.
    """

    label: LabelVolume
    version: str
    seconds: Mapping[str, float]
    uncertainty: ModelUncertainty | None


def contour(
    ct: CtVolume,
    model: Model,
    *,
    device: str = "cpu",
    overlap: float = OVERLAP,
    backend: Backend | None = None,
    on_step: Step | None = None,
    with_uncertainty: bool = False,
    on_probabilities: OnProbabilities | None = None,
) -> ContourResult:
    """Return the organs that `model` finds in `ct`.

    Args:
        ct: The scan; any orientation, any voxel size.
        model: Network and recipe.
        device: Device that the network is on.
        overlap: Share of each window that its neighbours cover too.
        backend: Computes the model's network; by default PyTorch, in float32 on a processor.
        on_step: Called at the beginning of each stage, and before each call of the network; an error that it
            raises ends the computation.
        with_uncertainty: Whether to compute the uncertainty too.
        on_probabilities: Called with the prepared CT and the softmax over it, which is not kept afterwards.
    """
    timer = StageTimer()
    if on_step is not None:
        on_step("prepare", 0, 1)
    prepared = Pipeline(model.recipe).prepare(ct)
    timer.lap("prepare")
    result = contour_prepared(
        prepared,
        model,
        device=device,
        overlap=overlap,
        backend=backend,
        on_step=on_step,
        with_uncertainty=with_uncertainty,
        on_probabilities=on_probabilities,
    )
    return replace(result, seconds={**timer.seconds, **result.seconds})


def contour_prepared(
    prepared: Prepared,
    model: Model,
    *,
    device: str = "cpu",
    overlap: float = OVERLAP,
    backend: Backend | None = None,
    on_step: Step | None = None,
    with_uncertainty: bool = False,
    on_probabilities: OnProbabilities | None = None,
) -> ContourResult:
    """Return the organs that `model` finds in a CT that is already prepared for its recipe."""
    pipeline = Pipeline(model.recipe)
    timer = StageTimer()
    calls = window_calls(prepared.hu.shape, window_of(model.recipe, prepared), overlap=overlap)
    softmax = probabilities(
        prepared,
        model,
        pipeline=pipeline,
        overlap=overlap,
        backend=backend or EagerBackend.usual(model.network, device),
        is_localised=True,
        before_window=None if on_step is None else StepCounter(on_step, "network", calls),
    )
    timer.lap("network")
    if on_step is not None:
        on_step("restore", 0, 1)
    label = pipeline.restore(softmax, prepared)
    uncertainty = None
    if with_uncertainty:
        uncertainty = ModelUncertainty.of(softmax, prepared.frame, prepared.box)
    timer.lap("restore")
    if on_probabilities is not None:
        on_probabilities(prepared, softmax)
    return ContourResult(label, model.version, timer.seconds, uncertainty)


def probabilities(
    prepared: Prepared,
    model: Model,
    *,
    pipeline: Pipeline,
    overlap: float,
    backend: Backend,
    is_localised: bool = False,
    before_window: Callable[[], object] | None = None,
    clicks: FloatArray | None = None,
) -> Tensor:
    """Return the softmax `(K, X, Y, Z)` over `prepared.hu`, from windows with Gaussian weights.

    `clicks` are the two channels `(2, X, Y, Z)` of a network that takes them; None for no click.
    `before_window` is called before each call of the network: background work can pause there. With
    `is_localised`, windows without a possible organ are left out (`lib.inference.windows`).
    """

    def predict(windows: Tensor) -> Tensor:
        if before_window is not None:
            before_window()
        return backend.run(windows)

    image = torch.from_numpy(pipeline.window(prepared.hu))[None]
    if clicks is not None:
        image[0, -2:] = torch.from_numpy(clicks)
    logits = sliding_window(
        image,
        window_of(model.recipe, prepared),
        predict,
        overlap=overlap,
        is_localised=is_localised,
    )[0]
    # Slab by slab and in place: the logits are the largest array of all.
    for x in range(logits.shape[1]):
        logits[:, x] = torch.softmax(logits[:, x], dim=0)
    return logits


def window_of(recipe: Recipe, prepared: Prepared) -> tuple[int, int, int]:
    """Return the size of a window: that of a training crop, but not much larger than the prepared CT."""
    x, y, z = (
        min(crop, -(-size // step) * step)
        for crop, size, step in zip(
            recipe.crop_vox, prepared.hu.shape, size_divisor(recipe), strict=True
        )
    )
    return (x, y, z)


class StepCounter:
    """Counts its calls, and reports each as a step of a stage.

    Args:
        on_step: Gets the stage, the number of steps done, and `total`.
        stage: Name of the stage.
        total: Largest number of calls.
    """

    def __init__(self, on_step: Step, stage: str, total: int) -> None:
        self._on_step = on_step
        self._stage = stage
        self._total = total
        self._done = 0

    def __call__(self) -> None:
        """Report the next step."""
        self._on_step(self._stage, self._done, self._total)
        self._done += 1


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
