"""One training run: from cases to weights."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset

from lib.inference import fast_bfloat16
from lib.losses import FocalDiceLoss
from lib.networks.build import build_network
from lib.recipes import Recipe, ScheduleConfig
from lib.registry import Model
from lib.training.cases import Case, PreparedCase, prepare_cases
from lib.training.checkpoint import load_checkpoint, save_checkpoint
from lib.training.crops import CropDataset, Sample
from lib.training.validate import validate
from lib.transforms.pipelines import Pipeline

logger = logging.getLogger(__name__)

_Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What may differ between two runs of one recipe.

    Attributes:
        seed: Of the first weights and of every crop.
        device: `cpu`, `cuda` or `cuda:N`.
        max_minutes: Where set, the schedule is compressed so that it ends by then; such a run depends on
            the machine's speed and is not repeatable bit for bit.
        epochs: In place of the recipe's.
        resume: Go on from the folder's checkpoint where it is of the same run.
    """

    seed: int = 0
    device: str = "cpu"
    max_minutes: float | None = None
    epochs: int | None = None
    resume: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        epoch: Epochs done.
        total_epochs: Epochs planned.
        loss: Mean of the last epoch.
        learning_rate: At the end of the last epoch.
        metric: Mean DSC over cases and organs at the last validation; None before the first.
        best_metric: The highest so far.
        best_epoch: Its epoch.
        organ_dice: Organ -> mean DSC at the last validation.
        elapsed_s: Time spent, earlier sittings of a resumed run included.
        eta_s: Time left, by the mean of the epochs so far.
    """

    epoch: int
    total_epochs: int
    loss: float
    learning_rate: float
    metric: float | None
    best_metric: float | None
    best_epoch: int
    organ_dice: Mapping[str, float]
    elapsed_s: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a run leaves: the averaged weights, and what to write on their card."""

    weights: Mapping[str, Tensor]
    card: Mapping[str, Any]


@dataclass(slots=True)
class _State:
    """All that changes while a run goes on; what a checkpoint holds."""

    network: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    elapsed_s: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_save(self, fingerprint: str) -> dict[str, Any]:
        return {
            "fingerprint": fingerprint,
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "elapsed_s": self.elapsed_s,
            "history": self.history,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.network.load_state_dict(saved["network"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.epoch = saved["epoch"]
        self.elapsed_s = saved["elapsed_s"]
        self.history = saved["history"]

    def served_network(self) -> nn.Module:
        """Return what would be served: the averaged network, where there is an average."""
        return self.average.module if self.average else self.network


def train(
    recipe: Recipe,
    train_cases: Sequence[Case],
    validation_cases: Sequence[Case],
    *,
    run_dir: Path,
    cache_dir: Path,
    options: RunOptions,
    initial: Model | None = None,
    on_progress: Callable[[Progress], None],
) -> TrainedModel:
    """Return the weights that `recipe` learns from `train_cases`.

    On a CPU two runs with the same arguments give the same bits, also when one of them was killed and
    resumed, unless `options.max_minutes` sets the pace.

    Args:
        recipe: What to train, and how.
        train_cases: Cases to learn from; organs missing from a label are unknown, not absent.
        validation_cases: Cases to report on; nothing is learned from them and no choice made by them.
        run_dir: Holds the checkpoint of the run.
        cache_dir: Holds prepared cases; may be shared between runs.
        options: See `RunOptions`.
        initial: Where the weights start; from the seed if None.
        on_progress: Called after each epoch.

    Raises:
        TrainingError: If no case can be trained on.
        CheckpointError: If the run's checkpoint is damaged.
    """
    schedule = replace(recipe.schedule, epochs=options.epochs or recipe.schedule.epochs)
    recipe = replace(recipe, schedule=schedule)
    prepared = prepare_cases(train_cases, Pipeline(recipe), cache_dir)
    length = schedule.epochs * schedule.steps_per_epoch * schedule.batch_size
    crops = CropDataset(prepared, recipe, seed=options.seed, length=length)

    torch.manual_seed(options.seed)
    state = _fresh_state(recipe, options, initial)
    fingerprint = _fingerprint(recipe, prepared, options, initial)
    saved = load_checkpoint(run_dir, fingerprint=fingerprint) if options.resume else None
    if saved is not None:
        state.restore(saved)
        logger.info("going on after epoch %d of %d", state.epoch, schedule.epochs)

    loss_function = FocalDiceLoss(recipe).to(options.device)
    started = time.monotonic() - state.elapsed_s
    while state.epoch < schedule.epochs and not _is_over(state, options):
        loss, rate = _epoch(state, crops, loss_function, options, started)
        state.epoch += 1
        state.elapsed_s = time.monotonic() - started
        last = state.epoch >= schedule.epochs or _is_over(state, options)
        entry: dict[str, Any] = {"epoch": state.epoch, "loss": loss, "learning_rate": rate}
        if validation_cases and (last or state.epoch % schedule.validate_every == 0):
            model = Model("candidate", state.served_network().eval(), recipe, {})
            entry["organ_dice"] = validate(
                model, validation_cases, device=options.device
            ).organ_means
        state.history.append(entry)
        state.elapsed_s = time.monotonic() - started
        save_checkpoint(run_dir, state.to_save(fingerprint))
        on_progress(_progress(state, schedule, options))
    return TrainedModel(state.served_network().state_dict(), _card(state, prepared, options))


def _fresh_state(recipe: Recipe, options: RunOptions, initial: Model | None) -> _State:
    network = build_network(recipe)
    if initial is not None:
        network.load_state_dict(initial.network.state_dict())
    network = network.to(options.device).to(memory_format=torch.channels_last_3d)
    decay = recipe.schedule.ema_decay
    average = (
        AveragedModel(network, multi_avg_fn=moving_average(decay), use_buffers=True)
        if decay
        else None
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.schedule.learning_rate)
    return _State(network, average, optimizer)


def moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Return what moves averaged weights towards the network's, faster while the run is young.

    The decay is at most `(1 + n) / (10 + n)` after `n` steps (as in TensorFlow's ExponentialMovingAverage): a
    short run is not held back by weights from before it learned anything. Whole numbers (counters, SwinUNETR's
    tables of positions) are copied: PyTorch would round their average down, a little more at each step.
    """

    def average(averaged: _Tensors, current: _Tensors, steps: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)
            return
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(now)(averaged, current, steps)  # type: ignore[no-untyped-call]

    return average


def _epoch(
    state: _State,
    crops: CropDataset,
    loss_function: FocalDiceLoss,
    options: RunOptions,
    started: float,
) -> tuple[float, float]:
    """Take one epoch's steps; return the mean loss and the last learning rate."""
    schedule = crops.recipe.schedule
    size = schedule.steps_per_epoch * schedule.batch_size
    first = state.epoch * size
    loader: DataLoader[Sample] = DataLoader(
        Subset(crops, range(first, first + size)), schedule.batch_size, num_workers=0
    )
    kind = torch.device(options.device).type
    losses, rate = [], 0.0
    state.network.train()
    # What an epoch draws (dropout) follows from its number, so that a resumed run draws the same.
    torch.manual_seed(options.seed * 1_000_003 + state.epoch)
    for step, (image, label, known) in enumerate(
        loader, start=state.epoch * schedule.steps_per_epoch
    ):
        elapsed_s = time.monotonic() - started
        rate = learning_rate(schedule, step, _share_of_time(elapsed_s, options))
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        image = image.to(options.device).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(kind, torch.bfloat16, enabled=fast_bfloat16(options.device)):
            logits = state.network(image)
        loss = loss_function(logits, label.to(options.device), known.to(options.device))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if schedule.gradient_clip:
            nn.utils.clip_grad_norm_(state.network.parameters(), schedule.gradient_clip)
        state.optimizer.step()
        if state.average:
            state.average.update_parameters(state.network)
        losses.append(float(loss.detach()))
        if _share_of_time(elapsed_s, options) >= 1:
            break
    return sum(losses) / len(losses), rate


def learning_rate(schedule: ScheduleConfig, step: int, share_of_time: float = 0.0) -> float:
    """Return the rate of step `step`, counted from 0; `share_of_time` hurries a cosine to its end."""
    rate = schedule.learning_rate
    if step < schedule.warmup_steps:
        return rate * (step + 1) / schedule.warmup_steps
    if schedule.decay == "step":
        return float(rate * 0.1 ** (step // schedule.steps_per_epoch // schedule.decay_epochs))
    share = max(step / (schedule.epochs * schedule.steps_per_epoch), share_of_time)
    return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _share_of_time(elapsed_s: float, options: RunOptions) -> float:
    return elapsed_s / (options.max_minutes * 60) if options.max_minutes else 0.0


def _is_over(state: _State, options: RunOptions) -> bool:
    return _share_of_time(state.elapsed_s, options) >= 1


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


def _validated(state: _State) -> list[tuple[float, int, dict[str, float]]]:
    """Return mean DSC, epoch and organs of every validation so far."""
    found = [(e["organ_dice"], e["epoch"]) for e in state.history if e.get("organ_dice")]
    return [(sum(organs.values()) / len(organs), epoch, organs) for organs, epoch in found]


def _progress(state: _State, schedule: ScheduleConfig, options: RunOptions) -> Progress:
    validated = _validated(state)
    best = max(validated, key=lambda v: v[0], default=None)
    left = (schedule.epochs - state.epoch) * state.elapsed_s / state.epoch
    if options.max_minutes:
        left = min(left, max(0.0, options.max_minutes * 60 - state.elapsed_s))
    return Progress(
        epoch=state.epoch,
        total_epochs=schedule.epochs,
        loss=state.history[-1]["loss"],
        learning_rate=state.history[-1]["learning_rate"],
        metric=validated[-1][0] if validated else None,
        best_metric=best[0] if best else None,
        best_epoch=best[1] if best else 0,
        organ_dice=validated[-1][2] if validated else {},
        elapsed_s=state.elapsed_s,
        eta_s=left,
    )


def _card(state: _State, prepared: Sequence[PreparedCase], options: RunOptions) -> dict[str, Any]:
    validated = _validated(state)
    return {
        "training": {
            "cases": [case.image_id for case in prepared],
            "seed": options.seed,
            "epochs": state.epoch,
            "seconds": round(state.elapsed_s, 1),
            "device": options.device,
        },
        "validation": {
            "mean_dice": validated[-1][0] if validated else None,
            "organ_dice": validated[-1][2] if validated else {},
        },
        "history": state.history,
    }
