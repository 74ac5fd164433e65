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

from lib.errors import ConfigError
from lib.losses import FocalDiceLoss
from lib.recipes import Recipe
from lib.registry import Model
from lib.training.budget import Budget
from lib.training.cases import Case, PreparedCase, prepare_cases
from lib.training.checkpoint import load_checkpoint, save_checkpoint
from lib.training.crops import CropDataset
from lib.training.progress import Progress, Step, Watch, progress_of
from lib.training.state import RunState, fresh_state
from lib.training.steps import Trainer
from lib.training.stopping import should_stop, standing
from lib.training.validate import validate
from lib.transforms.pipelines import Pipeline

__all__ = ["Progress", "RunOptions", "Step", "TrainedModel", "Watch", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What may differ between two runs of one recipe.

    Attributes:
        seed: Of the first weights and of every crop.
        device: `cpu`, `cuda` or `cuda:N`.
        max_minutes: Wall-clock time, where set: the schedule is compressed so that it ends by then. Such a run
            depends on the machine's speed and is not repeatable bit for bit.
        cpu_minutes: The same by the processor time of the training steps (`lib.training.budget`).
        epochs: In place of the recipe's.
        resume: Go on from the folder's checkpoint where it is of the same run.
    """

    seed: int = 0
    device: str = "cpu"
    max_minutes: float | None = None
    cpu_minutes: float | None = None
    epochs: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        limits = (self.max_minutes, self.cpu_minutes)
        if None not in limits:
            raise ConfigError("a run is limited in wall-clock or in processor time, not in both")
        if any(limit is not None and not limit > 0 for limit in limits):
            raise ConfigError("a run's time limit must be above 0 minutes")


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
    watch: Watch,
) -> TrainedModel:
    """Return the weights that `recipe` learns from `train_cases`.

    On a CPU two runs with the same arguments give the same bits, also when one of them was killed and
    resumed, unless a time limit sets the pace.

    The weights are those after the last step, averaged where the recipe averages: nothing is learned from the
    validation cases and no choice made by them. That holds unless `recipe.schedule.patience` is set: then the
    validation cases choose when to stop, and the weights are those of the best validation. What the card says
    of those cases is then not a test of the model but the best of several looks at them, and it says so
    (`validation.chose_the_weights`).

    Args:
        recipe: What to train, and how.
        train_cases: Cases to learn from; organs missing from a label are unknown, not absent.
        validation_cases: Cases to report on; see above.
        run_dir: Holds the checkpoint of the run.
        cache_dir: Holds prepared cases; may be shared between runs.
        options: See `RunOptions`.
        initial: Where the weights start; from the seed if None.
        watch: Who is told how it goes.

    Raises:
        TrainingError: If no case can be trained on.
        CheckpointError: If the run's checkpoint is damaged.
    """
    schedule = replace(recipe.schedule, epochs=options.epochs or recipe.schedule.epochs)
    recipe = replace(recipe, schedule=schedule)
    prepared = prepare_cases(train_cases, Pipeline(recipe), cache_dir)
    length = schedule.epochs * schedule.steps_per_epoch * schedule.batch_size
    budget = Budget(max_minutes=options.max_minutes, cpu_minutes=options.cpu_minutes)
    trainer = Trainer(
        crops=CropDataset(prepared, recipe, seed=options.seed, length=length),
        loss=FocalDiceLoss(recipe).to(options.device),
        device=options.device,
        seed=options.seed,
        budget=budget,
        on_step=watch.on_step,
    )
    torch.manual_seed(options.seed)
    state = fresh_state(recipe, options.device, initial)
    fingerprint = _fingerprint(recipe, prepared, options, initial)
    saved = load_checkpoint(run_dir, fingerprint=fingerprint) if options.resume else None
    if saved is not None:
        state.restore(saved)
        budget.restore(saved["budget"])
        logger.info("going on after epoch %d of %d", state.epoch, schedule.epochs)

    if schedule.patience and not validation_cases:
        logger.warning(
            "no case is held out, so nothing can end the run early: every epoch is trained"
        )
    while not _is_over(state, recipe, budget):
        loss, rate = trainer.epoch(state)
        state.epoch += 1
        budget.measure()
        entry: dict[str, Any] = {
            "epoch": state.epoch,
            "loss": loss,
            "learning_rate": rate,
            "spent_s": round(budget.spent_s, 3),
        }
        state.history.append(entry)
        last = _is_over(state, recipe, budget)
        if validation_cases and (last or state.epoch % schedule.validate_every == 0):
            with budget.unmetered():
                _validate(state, recipe, validation_cases, options.device)
            budget.measure()
        save_checkpoint(
            run_dir, {"fingerprint": fingerprint, "budget": budget.state(), **state.to_save()}
        )
        if watch.on_progress:
            is_over = _is_over(state, recipe, budget)
            watch.on_progress(progress_of(state, schedule, budget, is_over=is_over))
    weights = state.best or state.served_network().state_dict()
    return TrainedModel(weights, _card(state, prepared, options, budget, schedule_of=recipe))


def _validate(state: RunState, recipe: Recipe, cases: Sequence[Case], device: str) -> None:
    """Write DSC into the history's last entry, and keep the weights if the recipe wants the best."""
    model = Model("candidate", state.served_network().eval(), recipe, {})
    state.history[-1]["organ_dice"] = validate(model, cases, device=device).organ_means
    if recipe.schedule.patience and _best_epoch(state, recipe) == state.epoch:
        state.keep_as_best()


def _is_over(state: RunState, recipe: Recipe, budget: Budget) -> bool:
    """Return whether every epoch is done, the budget spent, or nothing gained for too long."""
    schedule = recipe.schedule
    return (
        state.epoch >= schedule.epochs
        or budget.share >= 1
        or should_stop(
            [entry["mean_dice"] for entry in state.validated()],
            patience=schedule.patience,
            min_delta=schedule.min_delta,
        )
    )


def _best_epoch(state: RunState, recipe: Recipe) -> int | None:
    validated = state.validated()
    means = [entry["mean_dice"] for entry in validated]
    best = standing(means, min_delta=recipe.schedule.min_delta).best
    return None if best is None else int(validated[best]["epoch"])


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
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _card(
    state: RunState,
    prepared: Sequence[PreparedCase],
    options: RunOptions,
    budget: Budget,
    *,
    schedule_of: Recipe,
) -> dict[str, Any]:
    validated = state.validated()
    chosen = _best_epoch(state, schedule_of) if state.best else None
    shown = [e for e in validated if e["epoch"] == chosen] or validated[-1:]
    return {
        "training": {
            "cases": [case.image_id for case in prepared],
            "seed": options.seed,
            "epochs": state.epoch,
            "steps": state.steps,
            "weights_of_epoch": chosen or state.epoch,
            "seconds": round(budget.wall_s, 1),
            "cpu_seconds": round(budget.cpu_s, 1),
            "device": options.device,
        },
        "validation": {
            "mean_dice": shown[0]["mean_dice"] if shown else None,
            "organ_dice": shown[0]["organ_dice"] if shown else {},
            "chose_the_weights": chosen is not None,
        },
        "history": state.history,
    }
