"""Contours and their uncertainty from several passes over one CT: the mean of the passes and their spread.

A pass applies one network to one *view* of the CT (original, mirrored left to right, or shifted in HU). The
networks are the last promoted models. If there is one model only, and it was trained with dropout, the passes
use that model with randomly dropped channels (Gal and Ghahramani, ICML 2016). Test-time views as a measure of
uncertainty follow Wang et al., Neurocomputing 338 (2019); ensembles follow Lakshminarayanan et al., NeurIPS
2017.

Only the sum of the probabilities and the label volume of each pass are kept: memory grows by one byte per voxel
and pass.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lib.backends.eager import EagerBackend
from lib.backends.interface import Backend
from lib.errors import ConfigError
from lib.imaging.formats import write_volume
from lib.imaging.quantities import FloatArray, LabelArray
from lib.imaging.volumes import CtVolume
from lib.inference.preprocessing import Pipeline, Prepared, keep_largest
from lib.inference.resampling import restored_map
from lib.inference.single_pass import (
    OVERLAP,
    ContourResult,
    StageTimer,
    StepCounter,
    probabilities,
    window_of,
)
from lib.inference.uncertainty import (
    ModelUncertainty,
    OrganUncertainty,
    most_likely,
    organ_uncertainty,
)
from lib.inference.windows import window_calls
from lib.jobs.progress import Step
from lib.models.registry import Model
from lib.organs.table import is_mirrorable, mirror_values

logger = logging.getLogger(__name__)

MAP_STEP = 1.0 / 256.0
"""Resolution of a stored uncertainty map; a finer one does not compress and has no further use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepOptions:
    """Options of contouring in several passes.

    Attributes:
        overlap: Share of a window that its neighbour covers too; 0.6 gives about twice as many windows as
            the 0.5 of a single pass.
        mirror: Whether to add a view mirrored left to right, with its organs swapped back.
        hu_shifts: Shifts of further views, in HU, every second one mirrored; within the range of training
            (`lib.recipes.schema.AugmentConfig.shift_hu`).
        models: Number of the last promoted models, including the active one.
        dropout_samples: Number of dropout samples if there is one model only, and it has dropout; 0 for none.
        seed: Seed of the dropout: the same CT, model and seed give the same result.
    """

    overlap: float = 0.6
    mirror: bool = True
    hu_shifts: tuple[float, ...] = (-10.0, 10.0)
    models: int = 3
    dropout_samples: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 0.9:
            raise ConfigError(f"deep: overlap must be from 0 to 0.9, not {self.overlap:g}")
        if self.models < 1:
            raise ConfigError(f"deep: models must be at least 1, not {self.models}")
        if self.dropout_samples < 0 or self.seed < 0:
            raise ConfigError("deep: dropout_samples and seed must not be below 0")
        if not all(abs(shift) <= 100 for shift in self.hu_shifts):
            raise ConfigError(f"deep: hu_shifts must be within 100 HU, not {self.hu_shifts}")


@dataclass(frozen=True, slots=True)
class View:
    """One variant of a CT as input of a network.

    Attributes:
        name: Name in reports.
        is_mirrored: Whether left and right are exchanged.
        shift_hu: Constant added to every voxel.
    """

    name: str
    is_mirrored: bool = False
    shift_hu: float = 0.0

    def of(self, prepared: Prepared) -> Prepared:
        """Return this view of `prepared`; the first axis runs from left to right."""
        hu = prepared.hu[::-1] if self.is_mirrored else prepared.hu
        return replace(prepared, hu=np.ascontiguousarray(hu + np.float32(self.shift_hu)))


@dataclass(frozen=True, slots=True)
class Pass:
    """One network applied to one view of the whole CT.

    Attributes:
        model: The model.
        view: Its input.
        dropout_seed: Seed of the dropped channels; None for no dropout.
    """

    model: Model
    view: View
    dropout_seed: int | None = None


@dataclass(frozen=True, slots=True)
class EnsemblePlan:
    """All passes over one CT.

    Attributes:
        passes: The passes, in order of execution.
        overlap: Overlap of the windows.
        notes: Omitted passes, with reasons.
    """

    passes: tuple[Pass, ...]
    overlap: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the number of passes and their cost, for the log and the command line."""
        windows = max(1.0, ((1 - OVERLAP) / (1 - self.overlap)) ** 3)
        return (
            f"{len(self.passes)} passes over each scan ({self._composition()}), each with up to "
            f"{windows:.1f} times the windows of a plain one: the network takes up to "
            f"{len(self.passes) * windows:.0f} times as long"
        )

    def _composition(self) -> str:
        views, models = len(self.views), len(self.models)
        draws = len(self.passes) // (views * models)
        repetition = f"{models} models" if models > 1 else f"{draws} draws of dropout"
        return f"{views} views" + (f" x {repetition}" if models * draws > 1 else ", one model")

    @property
    def models(self) -> tuple[str, ...]:
        """Versions of the models, newest first."""
        return tuple(dict.fromkeys(p.model.version for p in self.passes))

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views."""
        return tuple(dict.fromkeys(p.view.name for p in self.passes))

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, for JSON."""
        return {
            "passes": len(self.passes),
            "models": list(self.models),
            "views": list(self.views),
            "dropout_samples": len({p.dropout_seed for p in self.passes} - {None})
            // len(self.views),
            "overlap": self.overlap,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class DeepContours(ContourResult):
    """Contours from the mean of several passes, and the uncertainty from their spread.

    Attributes:
        uncertainty_map: `(X, Y, Z)` on the label's grid, float32, 0 (certain) to 1 (all classes equally
            likely); 0 outside the body's box, where no network was applied.
        organs: TG-263 name -> spread of the passes, for each organ of the recipe.
        plan: The passes.
    """

    uncertainty_map: FloatArray
    organs: Mapping[str, OrganUncertainty]
    plan: EnsemblePlan

    def summary(self) -> dict[str, Any]:
        """Return a summary for JSON: `uncertainty` per organ, and `deep`, the plan."""
        uncertainty = {
            name: {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in asdict(organ).items()
            }
            for name, organ in self.organs.items()
        }
        return {"uncertainty": uncertainty, "deep": self.plan.as_dict()}


def plan_passes(
    model: Model, options: DeepOptions, *, earlier: Sequence[Model] = (), notes: Sequence[str] = ()
) -> EnsemblePlan:
    """Return the passes that `options` define.

    Args:
        model: The active model.
        options: See `DeepOptions`.
        earlier: Models promoted before `model`, newest first (`lib.models.registry.Registry.earlier`).
        notes: Notes to add to those about omitted passes.
    """
    notes = list(notes)
    is_mirrored = options.mirror and is_mirrorable(model.recipe.labels)
    if options.mirror and not is_mirrored:
        notes.append("no mirrored view: an organ of one side has no counterpart in the organ set")
    views = _views(options.hu_shifts, is_mirrored=is_mirrored)
    models = [model, *earlier][: options.models]
    draws = options.dropout_samples if len(models) == 1 and _dropouts(model.network) else 0
    passes = [Pass(used, view) for used in models for view in views]
    if draws:
        repeated = [p for p in passes for _ in range(draws)]
        passes = [replace(p, dropout_seed=options.seed + n) for n, p in enumerate(repeated)]
    return EnsemblePlan(tuple(passes), options.overlap, tuple(notes))


def _views(hu_shifts: Sequence[float], *, is_mirrored: bool) -> list[View]:
    """Return the views; every second shifted view is mirrored, so that both sides have the same weight."""
    views = [View("plain")]
    if is_mirrored:
        views.append(View("mirrored", is_mirrored=True))
    for number, shift in enumerate(hu_shifts):
        if is_mirrored and number % 2:
            views.append(View(f"mirrored, {shift:+g} HU", is_mirrored=True, shift_hu=shift))
        else:
            views.append(View(f"{shift:+g} HU", shift_hu=shift))
    return views


def contour_ensemble(
    ct: CtVolume,
    plan: EnsemblePlan,
    *,
    device: str = "cpu",
    backend_of: Callable[[Model], Backend] | None = None,
    pass_context: AbstractContextManager[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_step: Step | None = None,
) -> DeepContours:
    """Return the organs that the passes of `plan` find in `ct`, with their uncertainty.

    The contours follow from the mean of the passes' probabilities. The uncertainty of an organ is computed from
    the contours of each pass at the network's voxel size, reduced to the largest piece of each organ.

    Args:
        ct: The scan; any orientation, any voxel size.
        plan: Result of `plan_passes`; all its models prepare CTs in the same way.
        device: Device that the networks are on.
        backend_of: See `run_passes`.
        pass_context: Entered for each pass: with a lock, other requests can run between two passes.
        progress: Called after each pass with the number of passes done and their total.
        on_step: See `lib.inference.single_pass.contour`.
    """
    active = plan.passes[0].model
    pipeline = Pipeline(active.recipe)
    timer = StageTimer()
    counter = None
    if on_step is not None:
        on_step("prepare", 0, 1)
    prepared = pipeline.prepare(ct)
    timer.lap("prepare")
    if on_step is not None:
        window = window_of(active.recipe, prepared)
        calls = window_calls(prepared.hu.shape, window, overlap=plan.overlap)
        counter = StepCounter(on_step, "network", calls * len(plan.passes))
    results = run_passes(
        plan,
        prepared,
        device=device,
        backend_of=backend_of,
        pass_context=pass_context,
        progress=progress,
        before_window=counter,
    )
    mean = results.mean()
    timer.lap("network")
    if on_step is not None:
        on_step("restore", 0, 1)
    label = pipeline.restore(mean, prepared)
    timer.lap("restore")
    uncertainty = ModelUncertainty.of(mean, prepared.frame, prepared.box)
    uncertainty_map = restored_map(uncertainty.entropy, prepared.frame, prepared.box)
    organs = organ_uncertainty(
        results.samples,
        contours=label.array,
        uncertainty=uncertainty_map,
        labels=active.recipe.labels,
    )
    timer.lap("uncertainty")
    return DeepContours(
        label, active.version, timer.seconds, uncertainty, uncertainty_map, organs, plan
    )


def run_passes(
    plan: EnsemblePlan,
    prepared: Prepared,
    *,
    device: str = "cpu",
    backend_of: Callable[[Model], Backend] | None = None,
    pass_context: AbstractContextManager[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    before_window: Callable[[], object] | None = None,
) -> "PassAccumulator":
    """Run the passes of `plan` over an image that is prepared for their models.

    Args:
        plan: Result of `plan_passes`.
        prepared: The image.
        device: Device that the networks are on.
        backend_of: Returns the backend of a model for passes without dropout; by default PyTorch.
        pass_context: Entered for each pass.
        progress: Called after each pass with the number of passes done and their total.
        before_window: Called before each call of a network, with a few windows.
    """
    pass_context = nullcontext() if pass_context is None else pass_context
    recipe = plan.passes[0].model.recipe
    pipeline = Pipeline(recipe)
    results = PassAccumulator(recipe.labels, prepared.hu.shape)
    for number, item in enumerate(plan.passes, 1):
        view = item.view.of(prepared)
        if backend_of is None or item.dropout_seed is not None:
            backend: Backend = EagerBackend.usual(item.model.network, device)
        else:
            backend = backend_of(item.model)
        with pass_context, active_dropout(item.model.network, item.dropout_seed, device=device):
            softmax = probabilities(
                view, item.model, pipeline=pipeline, backend=backend, overlap=plan.overlap,
                before_window=before_window,
            )  # fmt: skip
        results.add(softmax, is_mirrored=item.view.is_mirrored)
        # Freed before the next pass: a softmax is the largest array here.
        del softmax
        if progress is not None:
            progress(number, len(plan.passes))
    return results


def write_uncertainty_map(path: Path, contours: DeepContours) -> None:
    """Write the uncertainty map to `path`, on the CT's grid, float32, rounded to `MAP_STEP`.

    Raises:
        LabelError: If the suffix is none of `lib.imaging.formats.SCAN_SUFFIXES`, or the disk is full.
    """
    rounded = np.rint(contours.uncertainty_map / np.float32(MAP_STEP)) * np.float32(MAP_STEP)
    write_volume(path, rounded, contours.label.grid)


@contextmanager
def active_dropout(network: nn.Module, seed: int | None, *, device: str) -> Iterator[None]:
    """Activate the dropout of `network` inside this context, and nothing else of its training mode.

    Batch normalisation keeps its learned statistics. The random numbers depend on `seed`; the global random
    state is restored afterwards.

    Args:
        network: In evaluation mode.
        seed: Random seed; None leaves the network unchanged.
        device: Device that the network runs on.
    """
    if seed is None:
        yield
        return
    dropouts = _dropouts(network)
    target = torch.device(device)
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if target.type == "cuda":
            with torch.cuda.device(target):
                torch.cuda.manual_seed(seed)
        try:
            for dropout in dropouts:
                dropout.train()
            yield
        finally:
            for dropout in dropouts:
                dropout.eval()


def _dropouts(network: nn.Module) -> list[_DropoutNd]:
    """Return the active dropout modules of `network`."""
    return [m for m in network.modules() if isinstance(m, _DropoutNd) and m.p > 0]


class PassAccumulator:
    """Sum of the probabilities of the passes, and the label volume of each pass; mirrored views are undone."""

    def __init__(self, labels: Mapping[str, int], shape: tuple[int, ...]) -> None:
        self._labels = labels
        self._swapped = mirror_values(labels)
        self._sum = torch.zeros((len(self._swapped), *shape))
        self.samples: list[LabelArray] = []

    def add(self, softmax: Tensor, *, is_mirrored: bool) -> None:
        """Add the softmax `(K, X, Y, Z)` of one pass, as the network returned it."""
        label = most_likely(softmax)
        if is_mirrored:
            label = np.array(self._swapped, np.uint8)[label[::-1]]
        for value in self._labels.values():
            keep_largest(label, value)
        self.samples.append(label)
        for value, swapped in enumerate(self._swapped):
            self._sum[value] += softmax[swapped].flip(0) if is_mirrored else softmax[value]

    def mean(self) -> Tensor:
        """Return the mean of the passes; no pass can be added afterwards."""
        return self._sum.div_(len(self.samples))
