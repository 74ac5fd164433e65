"""Correction of the active model's contours by clicks and scribbles, in a box around them."""

import time
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from lib.backends.interface import Backend
from lib.errors import ConfigError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray, MaskArray
from lib.imaging.scans import read_ct
from lib.imaging.volumes import CtVolume
from lib.inference.backend_choice import BackendChoice
from lib.inference.preprocessing import Prepared
from lib.inference.resampling import Box, closest_ras
from lib.inference.single_pass import ContourResult, contour
from lib.isolation.inputs import Input
from lib.jobs.inference_queue import InferenceQueue, Turn
from lib.jobs.priority import ServingPriority
from lib.models.registry import Model
from lib.models.served_model import ServedModel
from lib.prompts.guided import ClickGuided, guided_probabilities
from lib.prompts.kept_runs import KeptRun, KeptRuns, QuantisedProbabilities
from lib.prompts.organ_prompts import MAX_BOX_VOX, OrganPrompts, require_prompts
from lib.prompts.refinement import prompt_box, refine
from lib.recipes.schema import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinedOrgan:
    """An organ in the box around its prompts; outside the box its contour is unchanged.

    Attributes:
        organ: TG-263 name.
        value: Its value in the model's labels.
        box: In voxels of the CT.
        mask: `(X, Y, Z)` of the box.
        changed_vox: Number of voxels that differ from the contour before.
        grid: Grid of the CT.
        version: Version of the model.
        was_kept: Whether the probabilities were kept from an earlier run.
        seconds: Duration.
    """

    organ: str
    value: int
    box: Box
    mask: MaskArray
    changed_vox: int
    grid: Grid
    version: str
    was_kept: bool
    seconds: float


class PromptService:
    """Corrects contours of the active model.

    The CT and the probabilities of the last runs are kept. If they are not there any more, the CT is read
    again, and the network computes the windows around the prompts only.

    Args:
        served: The active model.
        queue: Queue of inference requests; a correction from kept probabilities does not wait in it.
        backends: Backend of each model.
        priority: By which background work waits for inference.
        runs: The kept runs.
    """

    def __init__(
        self,
        served: ServedModel,
        queue: InferenceQueue,
        backends: BackendChoice,
        *,
        priority: ServingPriority | None = None,
        runs: KeptRuns | None = None,
    ) -> None:
        self._served = served
        self._queue = queue
        self._backends = backends
        self._priority = priority
        self.runs = runs or KeptRuns()

    def refine(
        self,
        scan: Path,
        prompts_on: Callable[[CtVolume, Recipe], OrganPrompts],
        *,
        image_id: str,
    ) -> RefinedOrgan:
        """Return an organ corrected by its prompts.

        Args:
            scan: The CT.
            prompts_on: Returns the prompts, given the CT and the model's recipe.
            image_id: For messages.

        Raises:
            ConfigError: If the organ is unknown, there is no prompt, or one is outside the scan.
            ScanError: If the scan is not one regular CT.
            NoModelError: If there is no active model.
            QueueFullError: If the box has to be computed, and too many requests wait already.
        """
        started = time.perf_counter()
        model = self._served.get()
        with self._priority.inference() if self._priority else nullcontext():
            key = run_key(Input(scan), model)
            kept = self.runs.get(key)
            ct = kept.ct if kept is not None else read_ct(scan, image_id=image_id)
            prompts = prompts_on(ct, model.recipe)
            value = require_organ(prompts.organ, model)
            require_prompts(prompts.prompts, ct.grid, image_id=image_id)
            box = box_of(prompts, ct, image_id=image_id)
            run = kept
            if run is None or not run.covers(box):
                run = self._computed(key, ct, model, box, image_id=image_id)
            guided = self._guided(run, prompts, model, box) if model.recipe.has_clicks else None
            mask, changed_vox = corrected(run, prompts, value, box, guided=guided)
        return RefinedOrgan(
            organ=prompts.organ,
            value=value,
            box=box,
            mask=mask,
            changed_vox=changed_vox,
            grid=ct.grid,
            version=model.version,
            was_kept=run is kept,
            seconds=round(time.perf_counter() - started, 3),
        )

    def _guided(self, run: KeptRun, prompts: OrganPrompts, model: Model, box: Box) -> ClickGuided:
        """Return `click_guided`, computed after waiting in the queue."""

        def compute(turn: Turn) -> ClickGuided:
            with turn:
                return click_guided(run, prompts, model, box, self._backends.backend_of(model))

        return self._queue.run(object(), compute, lambda shared: shared, image_id=run.ct.image_id)

    def whole_label(self, scan: Path, *, image_id: str) -> tuple[KeptRun, Model]:
        """Return a run of the active model on the whole CT, kept or computed.

        Raises:
            ScanError: If the scan is not one regular CT.
            NoModelError: If there is no active model.
            QueueFullError: If too many requests wait already.
        """
        model = self._served.get()
        key = run_key(Input(scan), model)
        run = self.runs.get(key)
        if run is None or not run.is_whole:
            ct = run.ct if run is not None else read_ct(scan, image_id=image_id)
            whole = (slice(0, ct.array_hu.shape[0]), slice(0, ct.array_hu.shape[1]),
                     slice(0, ct.array_hu.shape[2]))  # fmt: skip
            with self._priority.inference() if self._priority else nullcontext():
                run = self._computed(key, ct, model, whole, image_id=image_id)
        return run, model

    def _computed(
        self, key: Hashable, ct: CtVolume, model: Model, box: Box, *, image_id: str
    ) -> KeptRun:
        """Return a run on the part of a CT that the network needs for `box`, and keep it."""
        region = network_region(box, ct.grid, model.recipe)

        def compute(turn: Turn) -> KeptRun:
            with turn:
                keeper = RunKeeper(ct, region)
                result = contour(
                    part_of(ct, region),
                    model,
                    backend=self._backends.backend_of(model),
                    device=self._served.device,
                    on_step=turn.progress.step,
                    on_probabilities=keeper.take,
                )
            return keeper.run(result)

        corner = tuple((side.start, side.stop) for side in region)
        run = self._queue.run((key, corner), compute, lambda shared: shared, image_id=image_id)
        self.runs.put(key, run)
        return run


class RunKeeper:
    """Takes the probabilities of one run, to keep them.

    Args:
        ct: The whole CT.
        region: The part that is computed; None for the whole.
    """

    def __init__(self, ct: CtVolume, region: Box | None = None) -> None:
        x, y, z = ct.array_hu.shape
        self._ct = ct
        self._region = region or (slice(0, x), slice(0, y), slice(0, z))
        self._probabilities: QuantisedProbabilities | None = None

    def take(self, prepared: Prepared, softmax: Tensor) -> None:
        """Take the result of the network; for `lib.inference.single_pass.contour`."""
        self._probabilities = QuantisedProbabilities.of(prepared, softmax)

    def run(self, result: ContourResult) -> KeptRun:
        """Return the run whose result is `result`."""
        if self._probabilities is None:
            raise RuntimeError("the run has not ended yet")
        return KeptRun(self._ct, self._region, self._probabilities, result.label)


def run_key(image: Input, model: Model) -> Hashable:
    """Return what a run depends on: the version of the model, and the scan's files with their states."""
    return model.version, image.path, image.state


def require_organ(organ: str, model: Model) -> int:
    """Return the value of an organ in the model's labels.

    Raises:
        ConfigError: If the model does not know it.
    """
    labels = model.recipe.labels
    if organ not in labels:
        raise ConfigError(
            f"{organ[:80]!r}: {model.version} does not contour this organ; expected one of {', '.join(labels)}"
        )
    return labels[organ]


def part_of(ct: CtVolume, region: Box) -> CtVolume:
    """Return a part of a CT as a CT of its own, at its place in the patient."""
    affine = ct.grid.affine_ras
    start = [side.start for side in region]
    affine[:3, 3] += affine[:3, :3] @ start
    array = ct.array_hu[region]
    x, y, z = array.shape
    return CtVolume(ct.image_id, array, Grid.from_affine((x, y, z), affine))


def box_of(prompts: OrganPrompts, ct: CtVolume, *, image_id: str) -> Box:
    """Return the box of the CT's voxels in which prompts can change something.

    Raises:
        ConfigError: If there is no prompt, or they lie too far apart.
    """
    if not prompts.prompts:
        raise ConfigError(
            f"{image_id}: no click and no scribble for {prompts.organ}; at least one expected"
        )
    voxels = np.concatenate([prompt.voxels for prompt in prompts.prompts])
    box = prompt_box(voxels, ct.array_hu.shape, ct.grid.spacing_mm)
    size = int(np.prod([side.stop - side.start for side in box]))
    if size > MAX_BOX_VOX:
        raise ConfigError(
            f"{image_id}: the clicks and scribbles for {prompts.organ} lie too far apart: their box has {size} "
            f"voxels, at most {MAX_BOX_VOX} expected; correct one end of the organ at a time"
        )
    return box


def network_region(box: Box, grid: Grid, recipe: Recipe) -> Box:
    """Return `box`, enlarged to at least one window of the network, within the CT."""
    axes, _ = closest_ras(grid)
    sides = list(box)
    for axis, crop, spacing_mm in zip(axes, recipe.crop_vox, recipe.spacing_mm, strict=True):
        size = grid.shape_vox[axis]
        wanted = int(np.ceil(crop * spacing_mm / grid.spacing_mm[axis]))
        side = sides[axis]
        missing = max(0, wanted - (side.stop - side.start))
        low = max(0, side.start - missing // 2)
        high = min(size, max(side.stop, low + wanted))
        sides[axis] = slice(max(0, min(low, high - wanted)), high)
    return (sides[0], sides[1], sides[2])


def click_guided(
    run: KeptRun, prompts: OrganPrompts, model: Model, box: Box, backend: Backend
) -> ClickGuided:
    """Return what a network that takes clicks says in `box` (of `box_of`) with these prompts."""
    region = network_region(box, run.ct.grid, model.recipe)
    start = [side.start for side in region]
    voxels = [(prompt.voxels - start, prompt.is_add) for prompt in prompts.prompts]
    found = guided_probabilities(part_of(run.ct, region), voxels, model, backend)
    return ClickGuided(found, region)


def corrected(
    run: KeptRun,
    prompts: OrganPrompts,
    value: int,
    box: Box,
    *,
    guided: ClickGuided | None = None,
) -> tuple[MaskArray, int]:
    """Return an organ in a box that the run covers, and the number of changed voxels.

    Args:
        run: The run.
        prompts: The prompts of the organ.
        value: Its value in the run's label.
        box: Of `box_of`.
        guided: What a network that takes clicks says with these prompts: where its contour differs from the
            run's, it counts. The random walker then makes sure that every prompt is respected.
    """
    label = run.label_in(box)
    before = label == value if prompts.drawn is None else prompts.drawn.within(box)
    offset = np.array([side.start for side in box])
    inner = [type(prompt)(prompt.voxels - offset, prompt.is_add) for prompt in prompts.prompts]
    certainty, contour_now = run.certainty(value, box), before
    if guided is not None:
        certainty = guided.certainty(value, box)
        is_changed = (certainty > 0.5) != (run.certainty(value, box) > 0.5)
        contour_now = np.where(is_changed, certainty > 0.5, before)
    mask = refine(
        contour_now,
        certainty,
        run.ct.array_hu[box],
        inner,
        spacing_mm=run.ct.grid.spacing_mm,
    )
    if not prompts.is_overwriting:
        mask &= before | ~_protected(label, value, [p.voxels for p in inner if p.is_add])
        for prompt in inner:
            mask[tuple(prompt.voxels.T)] = prompt.is_add
    return mask, int(np.count_nonzero(mask != before))


def _protected(
    label: LabelArray, value: int, added: list["np.ndarray[tuple[int, int], np.dtype[np.intp]]"]
) -> MaskArray:
    """Return the voxels of other organs, but for organs that the user clicked on to add them."""
    own = {0, value}
    for voxels in added:
        own |= set(np.unique(label[tuple(voxels.T)]).tolist())
    return np.asarray(~np.isin(label, sorted(own)))
