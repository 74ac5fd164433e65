"""The training run: repeatable, resumable, the same for the server and the command line.

Every crop is a pure function of the seed and its number (`lib.training.crops`), so a run that was killed and
goes on from its checkpoint sees the same crops in the same order, and on a CPU ends with the same bits.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.errors import TrainingError
from lib.inference.preprocessing import Pipeline
from lib.models.registry import Model
from lib.networks.losses import FocalDiceLoss
from lib.recipes.schema import Recipe
from lib.storage.atomic_files import remove_unfinished
from lib.training.cases import Case, PreparedCase, prepare_cases
from lib.training.crops import CropDataset
from lib.training.distributed import ProcessGroup, current_group
from lib.training.progress import (
    FAILED,
    FINISHED,
    STOPPED,
    Progress,
    RunCallbacks,
    Step,
    Trackers,
    progress_of,
)
from lib.training.record import RunOptions, run_record, write_record
from lib.training.schedule import Budget, should_stop, stopping_state
from lib.training.state import TrainingState, fresh_state, load_checkpoint, save_checkpoint
from lib.training.steps import Trainer
from lib.training.validate import validate

__all__ = ["Progress", "RunCallbacks", "RunOptions", "Step", "TrainedModel", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a run leaves: the weights to serve, and what to write on their card."""

    weights: Mapping[str, Tensor]
    card: Mapping[str, Any]


def train(
    recipe: Recipe,
    train_cases: Sequence[Case],
    validation_cases: Sequence[Case],
    *,
    run_dir: Path,
    cache_dir: Path,
    options: RunOptions,
    initial: Model | None = None,
    callbacks: RunCallbacks,
) -> TrainedModel:
    """Return the weights that `recipe` learns from `train_cases`.

    On a CPU two runs with the same arguments give the same bits, also when one of them was killed and
    resumed, unless a time limit sets the pace.

    The weights are those after the last step, averaged where the recipe averages: nothing is learned from the
    validation cases and no choice made by them. That holds unless `recipe.schedule.patience` is set: then the
    validation cases choose when to stop, and the weights are those of the best validation. What the card says
    of those cases is then not a test of the model but the best of several looks at them, and it says so
    (`validation.chose_the_weights`).

    Under `torchrun` (`lib.training.distributed`) every process calls this with the same arguments, and gets the
    same weights; the first one alone writes, validates and tells `callbacks`.

    Args:
        recipe: What to train, and how.
        train_cases: Cases to learn from; organs missing from a label are unknown, not absent.
        validation_cases: Cases to report on; see above.
        run_dir: Holds the checkpoint of the run, and its record as `config.yaml`.
        cache_dir: Holds prepared cases; may be shared between runs.
        options: See `RunOptions`.
        initial: Where the weights start; from the seed if None.
        callbacks: Who is told how it goes.

    Raises:
        ConfigError: If the processes cannot share a batch equally.
        TrainingError: If no case can be trained on.
        CheckpointError: If the run's checkpoint is damaged.
    """
    schedule = replace(recipe.schedule, epochs=options.epochs or recipe.schedule.epochs)
    recipe = replace(recipe, schedule=schedule)
    group = current_group(options.device)
    group.share_of(schedule.batch_size)
    prepared = _prepared(train_cases, recipe, cache_dir, group)
    torch.manual_seed(options.seed)
    run = _Run(
        recipe=recipe,
        validation_cases=validation_cases,
        options=options,
        run_dir=run_dir,
        callbacks=callbacks if group.is_first else RunCallbacks(),
        group=group,
        state=fresh_state(recipe, options.device, initial, group=group),
        budget=Budget(
            max_minutes=options.max_minutes, cpu_minutes=options.cpu_minutes, group=group
        ),
        fingerprint=_fingerprint(recipe, prepared, options, initial),
        record=run_record(
            recipe, options, prepared, validation_cases, initial=initial, group=group
        ),
    )
    run.go(prepared)
    return TrainedModel(run.weights(), run.card())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run and all that it needs."""

    recipe: Recipe
    validation_cases: Sequence[Case]
    options: RunOptions
    run_dir: Path
    callbacks: RunCallbacks
    group: ProcessGroup
    state: TrainingState
    budget: Budget
    fingerprint: str
    record: Mapping[str, Any]

    def go(self, prepared: Sequence[PreparedCase]) -> None:
        """Train until the run is over, from its checkpoint where it has one."""
        self._resume()
        if self.recipe.schedule.patience and not self.validation_cases:
            logger.warning(
                "no case is held out: nothing ends the run early, every epoch is trained"
            )
        if self.group.is_first:
            remove_unfinished(self.run_dir)
            write_record(self.run_dir, self.record)
        if self.callbacks.on_start:
            self.callbacks.on_start(self.record)
        trackers = Trackers(self.callbacks.trackers)
        status = FAILED
        try:
            with self.budget.unmetered():
                trackers.start(self.record, self.state.history)
            self._train(self._trainer(prepared), trackers)
            status = FINISHED
        except KeyboardInterrupt:
            status = STOPPED
            raise
        finally:
            trackers.end(status)

    def _resume(self) -> None:
        path = self.run_dir
        saved = load_checkpoint(path, fingerprint=self.fingerprint) if self.options.resume else None
        epoch = saved["epoch"] if saved else 0
        if epoch != self.group.from_first(epoch):
            raise TrainingError(
                f"{path}: this process found a checkpoint of epoch {epoch}, the first process another; "
                "let all of them see one folder"
            )
        if saved is not None:
            self.state.restore(saved)
            self.budget.restore(saved["budget"])
            total = self.recipe.schedule.epochs
            logger.info("going on after epoch %d of %d", self.state.epoch, total)

    def _trainer(self, prepared: Sequence[PreparedCase]) -> Trainer:
        schedule, options = self.recipe.schedule, self.options
        length = schedule.epochs * schedule.steps_per_epoch * schedule.batch_size
        return Trainer(
            crops=CropDataset(
                prepared,
                self.recipe,
                seed=options.seed,
                length=length,
                favoured=options.favoured,
            ),
            loss=FocalDiceLoss(self.recipe, pool=self.group.pool).to(options.device),
            network=self.group.wrapped(self.state.network),
            group=self.group,
            device=options.device,
            in_bfloat16=options.in_bfloat16,
            seed=options.seed,
            budget=self.budget,
            on_step=self.callbacks.on_step,
        )

    def _train(self, trainer: Trainer, trackers: Trackers) -> None:
        state, schedule = self.state, self.recipe.schedule
        while not self._is_over():
            loss, rate = trainer.epoch(state)
            state.epoch += 1
            self.budget.measure()
            entry: dict[str, Any] = {
                "epoch": state.epoch,
                "loss": loss,
                "learning_rate": rate,
                "spent_s": round(self.budget.spent_s, 3),
            }
            state.history.append(entry)
            with self.budget.unmetered():
                is_due = self._is_over() or state.epoch % schedule.validate_every == 0
                if is_due and self.validation_cases:
                    self._validate(trackers)
                trackers.epoch(entry)
            self.budget.measure()
            self._save()
            if self.callbacks.on_progress:
                is_over = self._is_over()
                self.callbacks.on_progress(
                    progress_of(state, schedule, self.budget, is_over=is_over)
                )

    def _validate(self, trackers: Trackers) -> None:
        """Write DSC into the history's last entry, and keep the weights if the recipe wants the best."""
        state, found = self.state, {}
        if self.group.is_first:
            found = validate(
                Model("candidate", state.served_network().eval(), self.recipe, {}),
                self.validation_cases,
                device=self.options.device,
                on_contours=lambda ct, label: trackers.contours(state.epoch, ct, label),
            ).organ_means
        state.history[-1]["organ_dice"] = self.group.from_first(found)
        if self.recipe.schedule.patience and self._best_epoch() == state.epoch:
            state.keep_as_best()

    def _save(self) -> None:
        if self.group.is_first:
            about = {
                "fingerprint": self.fingerprint,
                "record": self.record,
                "budget": self.budget.state(),
            }
            save_checkpoint(self.run_dir, {**about, **self.state.to_save()})

    def _is_over(self) -> bool:
        """Return whether every epoch is done, the budget spent, or nothing gained for too long."""
        schedule = self.recipe.schedule
        return (
            self.state.epoch >= schedule.epochs
            or self.budget.share >= 1
            or should_stop(
                [entry["mean_dice"] for entry in self.state.validated()],
                patience=schedule.patience,
                min_delta=schedule.min_delta,
            )
        )

    def _best_epoch(self) -> int | None:
        validated = self.state.validated()
        means = [entry["mean_dice"] for entry in validated]
        best = stopping_state(means, min_delta=self.recipe.schedule.min_delta).best
        return None if best is None else int(validated[best]["epoch"])

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights to serve: the best validation's where one was chosen, else the last."""
        return self.state.best or self.state.served_network().state_dict()

    def card(self) -> dict[str, Any]:
        """Return what to remember of the run."""
        state, options = self.state, self.options
        validated = state.validated()
        chosen = self._best_epoch() if state.best else None
        shown = [entry for entry in validated if entry["epoch"] == chosen] or validated[-1:]
        return {
            "training": {
                "cases": list(self.record["cases"]),
                "seed": options.seed,
                "epochs": state.epoch,
                "steps": state.steps,
                "weights_of_epoch": chosen or state.epoch,
                "seconds": round(self.budget.wall_s, 1),
                "cpu_seconds": round(self.budget.cpu_s, 1),
                "device": options.device,
            },
            "validation": {
                "mean_dice": shown[0]["mean_dice"] if shown else None,
                "organ_dice": shown[0]["organ_dice"] if shown else {},
                "chose_the_weights": chosen is not None,
                "cases": [case.image_id for case in self.validation_cases],
            },
            "history": state.history,
            "config": dict(self.record),
        }


def _prepared(
    cases: Sequence[Case], recipe: Recipe, cache_dir: Path, group: ProcessGroup
) -> list[PreparedCase]:
    """Return the cases ready to be cropped: made by the first process, read by the others."""
    if not group.is_first:
        group.wait()
    prepared = prepare_cases(cases, Pipeline(recipe), cache_dir)
    if group.is_first:
        group.wait()
    return prepared


def _fingerprint(
    recipe: Recipe, cases: Sequence[PreparedCase], options: RunOptions, initial: Model | None
) -> str:
    """Return what names the run: a checkpoint of another recipe, seed, scan or contour is not gone on from."""
    parts = [
        recipe.as_dict(),
        sorted((case.image_id, case.digest) for case in cases),
        options.seed,
        initial.version if initial else None,
    ]
    if options.favoured.image_ids:
        parts.append([sorted(options.favoured.image_ids), options.favoured.share])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
