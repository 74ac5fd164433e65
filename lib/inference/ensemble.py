"""One CT in, contours out, the slow way: several passes, their mean, and how far they differ.

A pass shows one *view* of the CT (as it is, mirrored left to right, a little brighter or darker) to one
network: each of the last promoted models, or, where there is one model only, that model with some channels
dropped at random (Gal and Ghahramani, ICML 2016), where it was trained with dropout. Views at test time as a
measure of uncertainty are those of Wang et al., Neurocomputing 338 (2019); ensembles, of Lakshminarayanan et
al., NeurIPS 2017.

Only the sum of the probabilities and each pass's label volume are kept: the memory grows by one byte per voxel
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

from lib.errors import ConfigError
from lib.imaging.formats import write_volume
from lib.imaging.quantities import FloatArray, LabelArray
from lib.imaging.volumes import CtVolume
from lib.inference.preprocessing import Pipeline, Prepared, keep_largest
from lib.inference.single_pass import OVERLAP, ContourResult, StageTimer, probabilities
from lib.inference.uncertainty import OrganUncertainty, normalised_entropy, organ_uncertainty
from lib.models.registry import Model
from lib.organs.table import is_mirrorable, mirror_values

logger = logging.getLogger(__name__)

MAP_STEP = 1.0 / 256.0
"""Steps in which an uncertainty map is stored: finer tells nobody more, and does not compress."""

_SLAB = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepOptions:
    """How many passes, and of what.

    Attributes:
        overlap: Share of a window that its neighbour sees again, at least; 0.6 gives twice the windows of the
            plain 0.5, in three dimensions.
        mirror: Whether the CT is also seen mirrored left to right, its organs swapped back.
        hu_shifts: The CT is also seen with these added, in HU, every second time mirrored; within what
            training adds (`lib.recipes.schema.AugmentConfig.shift_hu`).
        models: How many of the last promoted models, the served one among them.
        dropout_samples: Random draws where there is one model only, and it has dropout; 0 draws none.
        seed: Of those draws: the same CT, model and seed give the same answer.
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
            raise ConfigError(f"deep: at least 1 model is needed, not {self.models}")
        if self.dropout_samples < 0 or self.seed < 0:
            raise ConfigError("deep: dropout_samples and seed must not be below 0")
        if not all(abs(shift) <= 100 for shift in self.hu_shifts):
            raise ConfigError(f"deep: hu_shifts must be within 100 HU, not {self.hu_shifts}")


@dataclass(frozen=True, slots=True)
class View:
    """One way to show a CT to a network.

    Attributes:
        name: What people call it.
        is_mirrored: Whether left and right are exchanged.
        shift_hu: What is added to every voxel.
    """

    name: str
    is_mirrored: bool = False
    shift_hu: float = 0.0

    def of(self, prepared: Prepared) -> Prepared:
        """Return `prepared` as this view shows it; the first axis runs from left to right."""
        hu = prepared.hu[::-1] if self.is_mirrored else prepared.hu
        return replace(prepared, hu=np.ascontiguousarray(hu + np.float32(self.shift_hu)))


@dataclass(frozen=True, slots=True)
class Pass:
    """One look of one network at the whole CT.

    Attributes:
        model: Whose.
        view: What it sees.
        dropout_seed: Of the channels that are dropped; None drops none.
    """

    model: Model
    view: View
    dropout_seed: int | None = None


@dataclass(frozen=True, slots=True)
class EnsemblePlan:
    """Everything that will be computed for one CT.

    Attributes:
        passes: In the order in which they run.
        overlap: Of the windows.
        notes: What was left out, and why.
    """

    passes: tuple[Pass, ...]
    overlap: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return how many passes there are and what they cost, for a person who waits for them."""
        windows = max(1.0, ((1 - OVERLAP) / (1 - self.overlap)) ** 3)
        return (
            f"{len(self.passes)} passes over each scan ({self._made_of()}), each with up to "
            f"{windows:.1f} times the windows of a plain one: the network takes up to "
            f"{len(self.passes) * windows:.0f} times as long"
        )

    def _made_of(self) -> str:
        views, models = len(self.views), len(self.models)
        draws = len(self.passes) // (views * models)
        by = f"{models} models" if models > 1 else f"{draws} draws of dropout"
        return f"{views} views" + (f" x {by}" if models * draws > 1 else ", one model")

    @property
    def models(self) -> tuple[str, ...]:
        """Their versions, newest first."""
        return tuple(dict.fromkeys(one.model.version for one in self.passes))

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views."""
        return tuple(dict.fromkeys(one.view.name for one in self.passes))

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
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
    """What the passes drew together, and how far they differ.

    Attributes:
        uncertainty_map: `(X, Y, Z)` on the label's grid, float32, 0 (sure) to 1 (all classes equally likely);
            0 outside the body's box, which no network saw.
        organs: TG-263 name -> how far the passes differ, for each organ of the recipe.
        plan: How it was made.
    """

    uncertainty_map: FloatArray
    organs: Mapping[str, OrganUncertainty]
    plan: EnsemblePlan

    def summary(self) -> dict[str, Any]:
        """Return what JSON tells of it: `uncertainty` per organ, and `deep`, how it was made."""
        uncertainty = {
            name: {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in asdict(organ).items()
            }
            for name, organ in self.organs.items()
        }
        return {"uncertainty": uncertainty, "deep": self.plan.as_dict()}


def plan(
    model: Model, options: DeepOptions, *, earlier: Sequence[Model] = (), notes: Sequence[str] = ()
) -> EnsemblePlan:
    """Return the passes that `options` ask for.

    Args:
        model: The served one.
        options: See `DeepOptions`.
        earlier: Models promoted before it, newest first (`lib.models.registry.Registry.earlier`).
        notes: What to say beside what is left out here.
    """
    said = list(notes)
    is_mirrored = options.mirror and is_mirrorable(model.recipe.labels)
    if options.mirror and not is_mirrored:
        said.append("no mirrored view: an organ of one side has no partner in the organ set")
    views = _views(options.hu_shifts, is_mirrored=is_mirrored)
    models = [model, *earlier][: options.models]
    draws = options.dropout_samples if len(models) == 1 and _dropouts(model.network) else 0
    passes = [Pass(one, view) for one in models for view in views]
    if draws:
        drawn = [one for one in passes for _ in range(draws)]
        passes = [replace(one, dropout_seed=options.seed + n) for n, one in enumerate(drawn)]
    return EnsemblePlan(tuple(passes), options.overlap, tuple(said))


def _views(hu_shifts: Sequence[float], *, is_mirrored: bool) -> list[View]:
    """Return the views; of the shifted ones every second is mirrored, so that both sides weigh the same."""
    views = [View("plain")]
    if is_mirrored:
        views.append(View("mirrored", is_mirrored=True))
    for number, shift in enumerate(hu_shifts):
        if is_mirrored and number % 2:
            views.append(View(f"mirrored, {shift:+g} HU", is_mirrored=True, shift_hu=shift))
        else:
            views.append(View(f"{shift:+g} HU", shift_hu=shift))
    return views


def contour_deeply(
    ct: CtVolume,
    planned: EnsemblePlan,
    *,
    device: str = "cpu",
    turn: AbstractContextManager[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DeepContours:
    """Return the organs that the passes of `planned` find in `ct` together, and how sure they are.

    The contours are those of the mean of the passes' probabilities. The samples that the organs' numbers are
    taken from are each pass's own contours at the network's voxel size, the largest piece of each organ.

    Args:
        ct: The scan; any orientation, any voxel size.
        planned: What `plan` returned; its models see CTs in the same way.
        device: Where the networks run.
        turn: Entered for each pass: a lock lets others run between two passes.
        progress: Called after each pass with the number done and that of all.
    """
    served = planned.passes[0].model
    pipeline = Pipeline(served.recipe)
    clock = StageTimer()
    prepared = pipeline.prepare(ct)
    clock.lap("prepare")
    gathered = run_passes(planned, prepared, device=device, turn=turn, progress=progress)
    mean = gathered.mean()
    clock.lap("network")
    label = pipeline.restore(mean, prepared)
    clock.lap("restore")
    uncertainty_map = pipeline.restore_map(normalised_entropy(mean), prepared)
    organs = organ_uncertainty(
        gathered.samples,
        contours=label.array,
        uncertainty=uncertainty_map,
        labels=served.recipe.labels,
    )
    clock.lap("uncertainty")
    return DeepContours(label, served.version, clock.seconds, uncertainty_map, organs, planned)


def run_passes(
    planned: EnsemblePlan,
    prepared: Prepared,
    *,
    device: str = "cpu",
    turn: AbstractContextManager[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    between: Callable[[], object] | None = None,
) -> "PassAccumulator":
    """Return what the passes of `planned` find in an image that is prepared for their models.

    Args:
        planned: What `plan` returned.
        prepared: The image.
        device: Where the networks run.
        turn: Entered for each pass.
        progress: Called after each pass with the number done and that of all.
        between: Called before each window of each pass.
    """
    turn = nullcontext() if turn is None else turn
    recipe = planned.passes[0].model.recipe
    pipeline = Pipeline(recipe)
    gathered = PassAccumulator(recipe.labels, prepared.hu.shape)
    for number, one in enumerate(planned.passes, 1):
        seen = one.view.of(prepared)
        with turn, active_dropout(one.model.network, one.dropout_seed, device=device):
            # As the network saw it: mirrored where it was.
            found = probabilities(
                seen, one.model, pipeline=pipeline, device=device, overlap=planned.overlap,
                between=between,
            )  # fmt: skip
        gathered.add(found, is_mirrored=one.view.is_mirrored)
        del found
        if progress is not None:
            progress(number, len(planned.passes))
    return gathered


def write_uncertainty_map(path: Path, found: DeepContours) -> None:
    """Write the uncertainty map to `path`, on the CT's grid, float32, rounded to `MAP_STEP`.

    Raises:
        LabelError: If the suffix is none of `lib.imaging.formats.SCAN_SUFFIXES`, or the disk is full.
    """
    rounded = np.rint(found.uncertainty_map / np.float32(MAP_STEP)) * np.float32(MAP_STEP)
    write_volume(path, rounded, found.label.grid)


@contextmanager
def active_dropout(network: nn.Module, seed: int | None, *, device: str) -> Iterator[None]:
    """Let the dropout of `network`, and nothing else of it, work as in training while this lasts.

    Batch normalisation keeps its learned statistics. The random numbers follow from `seed`; those of everybody
    else go on as if nothing had been drawn.

    Args:
        network: In evaluation mode.
        seed: None leaves the network as it is.
        device: Where it runs.
    """
    if seed is None:
        yield
        return
    dropouts = _dropouts(network)
    place = torch.device(device)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if place.type == "cuda":
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed)
        try:
            for dropout in dropouts:
                dropout.train()
            yield
        finally:
            for dropout in dropouts:
                dropout.eval()


def _dropouts(network: nn.Module) -> list[_DropoutNd]:
    """Return the modules of `network` that drop something in training."""
    return [m for m in network.modules() if isinstance(m, _DropoutNd) and m.p > 0]


class PassAccumulator:
    """The sum of the probabilities so far, and each pass's own label volume; all of them unmirrored."""

    def __init__(self, labels: Mapping[str, int], shape: tuple[int, ...]) -> None:
        self._labels = labels
        self._swapped = mirror_values(labels)
        self._sum = torch.zeros((len(self._swapped), *shape))
        self.samples: list[LabelArray] = []

    def add(self, found: Tensor, *, is_mirrored: bool) -> None:
        """Take in the softmax `(K, X, Y, Z)` of one pass."""
        label = most_likely(found)
        if is_mirrored:
            label = np.array(self._swapped, np.uint8)[label[::-1]]
        for value in self._labels.values():
            keep_largest(label, value)
        self.samples.append(label)
        for value, swapped in enumerate(self._swapped):
            self._sum[value] += found[swapped].flip(0) if is_mirrored else found[value]

    def mean(self) -> Tensor:
        """Return the mean of what was taken in; nothing can be added after it."""
        return self._sum.div_(len(self.samples))


def most_likely(found: Tensor) -> LabelArray:
    """Return the most likely value of each voxel of a softmax `(K, X, Y, Z)`.

    Slab by slab: PyTorch's indices take eight bytes each.
    """
    starts = range(0, found.shape[1], _SLAB)
    slabs = [found[:, x : x + _SLAB].argmax(dim=0).to(torch.uint8).numpy() for x in starts]
    return np.concatenate(slabs)
