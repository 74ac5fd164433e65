"""The training run: repeatable, resumable, and shared by the server and the command line.

Every crop is a pure function of the seed and its number (`lib.training.crops`). So a run that was killed and
continues from its checkpoint uses the same crops in the same order, and on a CPU ends with the same bits.
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
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.preprocessing import Pipeline
from lib.models.registry import Model
from lib.networks.losses import FocalDiceLoss
from lib.recipes.schema import Recipe
from lib.storage.leftovers import remove_unfinished
from lib.training.case_scores import FOLDER, CaseScores
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
from lib.training.state import TrainingState, initial_state, load_checkpoint, save_checkpoint
from lib.training.steps import Trainer
from lib.training.validate import validate

__all__ = ["Progress", "RunCallbacks", "RunOptions", "Step", "TrainedModel", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The result of a run: the weights to publish, and the content of their model card."""

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
    """Train the network of `recipe` on `train_cases` and return its weights.

    On a CPU two runs with the same arguments give the same bits, even if one of them was killed and resumed,
    unless there is a time limit.

    The weights are those after the last step, averaged if the recipe has an `ema_decay`: the validation cases
    have no influence on them. This changes if `recipe.schedule.patience` is set: then they decide when to stop,
    and the weights are those of the best validation. The validation result on the card is then the
    best of several and not an independent test; the card says so (`validation.chose_the_weights`).

    Under `torchrun` (`lib.training.distributed`) every process calls this with the same arguments and gets the
    same weights; only the first process writes, validates and calls `callbacks`.

    Args:
        recipe: Network, loss, schedule and preparation of the cases.
        train_cases: Training cases; an organ missing from a label counts as not contoured, not as absent.
        validation_cases: Cases for validation; see above.
        run_dir: Folder of the run's checkpoint and of its record, `config.yaml`.
        cache_dir: Folder of prepared cases, and of the scores of validated models (`CaseScores`); may be shared
            between runs.
        options: See `RunOptions`.
        initial: Model to start from; None for random weights from the seed.
        callbacks: See `RunCallbacks`.

    Raises:
        ConfigError: If a batch cannot be divided equally between the processes.
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
        scores=CaseScores(cache_dir / FOLDER, device=options.device),
        group=group,
        state=initial_state(recipe, options.device, initial, group=group),
        budget=Budget(
            max_minutes=options.max_minutes, cpu_minutes=options.cpu_minutes, group=group
        ),
        fingerprint=_fingerprint(recipe, prepared, options, initial),
        record=run_record(
            recipe, options, prepared, validation_cases, initial=initial, group=group
        ),
    )
    run.execute(prepared)
    return TrainedModel(run.weights(), run.card())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run with its data, options and state."""

    recipe: Recipe
    validation_cases: Sequence[Case]
    options: RunOptions
    run_dir: Path
    callbacks: RunCallbacks
    scores: CaseScores
    group: ProcessGroup
    state: TrainingState
    budget: Budget
    fingerprint: str
    record: Mapping[str, Any]

    def execute(self, prepared: Sequence[PreparedCase]) -> None:
        """Train until the run is over, starting from its checkpoint if there is one."""
        self._resume()
        if self.recipe.schedule.patience and not self.validation_cases:
            logger.warning("no validation case: the run cannot stop early, every epoch is trained")
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
                f"{path}: this process has a checkpoint of epoch {epoch}, the first process another; "
                "give all processes the same folder"
            )
        if saved is not None:
            self.state.restore(saved)
            self.budget.restore(saved["budget"])
            total = self.recipe.schedule.epochs
            logger.info("continuing after epoch %d of %d", self.state.epoch, total)

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
            loss, rate = trainer.run_epoch(state)
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
        """Add DSC to the last entry of the history, and keep the weights if they are the best so far."""
        state = self.state
        organ_dice: Mapping[str, float] = {}

        def on_contours(ct: CtVolume, label: LabelVolume) -> None:
            trackers.contours(state.epoch, ct, label)

        if self.group.is_first:
            organ_dice = validate(
                Model("candidate", state.final_network().eval(), self.recipe, {}),
                self.validation_cases,
                device=self.options.device,
                on_contours=on_contours if self.callbacks.trackers else None,
                scores=self.scores,
            ).organ_means
        state.history[-1]["organ_dice"] = self.group.from_first(organ_dice)
        if self.recipe.schedule.patience and self._best_epoch() == state.epoch:
            state.keep_as_best()

    def _save(self) -> None:
        if self.group.is_first:
            header = {
                "fingerprint": self.fingerprint,
                "record": self.record,
                "budget": self.budget.state(),
            }
            save_checkpoint(self.run_dir, {**header, **self.state.to_save()})

    def _is_over(self) -> bool:
        """Return whether every epoch is done, the budget is spent, or early stopping applies."""
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
        """Return the weights to publish: those of the best validation if one was chosen, else the last."""
        return self.state.best or self.state.final_network().state_dict()

    def card(self) -> dict[str, Any]:
        """Return the content of the model card."""
        state, options = self.state, self.options
        validated = state.validated()
        chosen = self._best_epoch() if state.best else None
        reported = [entry for entry in validated if entry["epoch"] == chosen] or validated[-1:]
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
                "mean_dice": reported[0]["mean_dice"] if reported else None,
                "organ_dice": reported[0]["organ_dice"] if reported else {},
                "chose_the_weights": chosen is not None,
                "cases": [case.image_id for case in self.validation_cases],
            },
            "history": state.history,
            "config": dict(self.record),
        }


def _prepared(
    cases: Sequence[Case], recipe: Recipe, cache_dir: Path, group: ProcessGroup
) -> list[PreparedCase]:
    """Return the prepared cases; the first process prepares them, the others read them from the cache."""
    if not group.is_first:
        group.wait()
    prepared = prepare_cases(cases, Pipeline(recipe), cache_dir)
    if group.is_first:
        group.wait()
    return prepared


def _fingerprint(
    recipe: Recipe, cases: Sequence[PreparedCase], options: RunOptions, initial: Model | None
) -> str:
    """Return a digest of recipe, seed, initial model and cases; a checkpoint with another is not used."""
    parts = [
        recipe.as_dict(),
        sorted((case.image_id, case.digest) for case in cases),
        options.seed,
        initial.version if initial else None,
    ]
    if options.favoured.image_ids:
        parts.append([sorted(options.favoured.image_ids), options.favoured.share])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
