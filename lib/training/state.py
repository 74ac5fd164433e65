"""State of a training run, and the checkpoint file that stores it.

The checkpoint is replaced atomically after each epoch, so that a killed run continues from there.
"""

import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.errors import CheckpointError
from lib.models.registry import Model
from lib.networks.build import build_network, load_initial
from lib.recipes.schema import Recipe
from lib.storage.atomic_files import replacing
from lib.training.distributed import SINGLE_PROCESS, ProcessGroup

_Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(slots=True)
class TrainingState:
    """A training run between two epochs.

    Attributes:
        network: The network in training.
        average: Moving average of its weights; None if the recipe has none.
        optimizer: Adam.
        epoch: Epochs done.
        steps: Optimiser steps done; fewer than planned if the budget ended an epoch.
        history: One entry per epoch: loss, learning rate, seconds spent, and DSC if it was validated.
        best: Weights of the best validation if the recipe stops early; else empty.
    """

    network: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def to_save(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "steps": self.steps,
            "history": self.history,
            "best": self.best,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore a state that `to_save` returned."""
        self.network.load_state_dict(saved["network"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.epoch = saved["epoch"]
        self.steps = saved["steps"]
        self.history = saved["history"]
        self.best = saved["best"]

    def final_network(self) -> nn.Module:
        """Return the network to publish: the averaged network if there is an average."""
        return self.average.module if self.average else self.network

    def keep_as_best(self) -> None:
        """Keep a copy of the current weights of `final_network` as the best."""
        self.best = {
            key: value.detach().cpu().clone()
            for key, value in self.final_network().state_dict().items()
        }

    def validated(self) -> list[dict[str, Any]]:
        """Return the validated entries of the history, each with its mean DSC as `mean_dice`."""
        return [
            {**entry, "mean_dice": sum(entry["organ_dice"].values()) / len(entry["organ_dice"])}
            for entry in self.history
            if entry.get("organ_dice")
        ]


def initial_state(
    recipe: Recipe, device: str, initial: Model | None, *, group: ProcessGroup = SINGLE_PROCESS
) -> TrainingState:
    """Return a run before its first epoch, on `device`; the weights are those of `initial`, or random."""
    network = build_network(recipe)
    if initial is not None:
        load_initial(network, initial.network.state_dict())
    network = group.with_pooled_statistics(network)
    network = network.to(device).to(memory_format=torch.channels_last_3d)
    decay = recipe.schedule.ema_decay
    average = (
        AveragedModel(network, multi_avg_fn=moving_average(decay), use_buffers=True)
        if decay
        else None
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.schedule.learning_rate, fused=True)
    return TrainingState(network, average, optimizer)


def moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Return an update rule of averaged weights, which is faster at the start of a run.

    The decay is at most `(1 + n) / (10 + n)` after `n` steps (as in TensorFlow's ExponentialMovingAverage), so
    that the random first weights do not dominate a short run. Integers (counters, SwinUNETR's tables of
    positions) are copied: PyTorch's average of an integer is sometimes one too low.
    """

    def average(averaged: _Tensors, current: _Tensors, steps: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)
            return
        current_decay = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(current_decay)(averaged, current, steps)  # type: ignore[no-untyped-call]

    return average


logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "checkpoint.pt"

_DAMAGE = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
)
"""Exceptions that torch raises for a damaged checkpoint; which one depends on the bytes."""


def save_checkpoint(run_dir: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) into `run_dir`, replacing the previous checkpoint."""
    with replacing(run_dir / CHECKPOINT_FILE) as temporary:
        torch.save(dict(state), temporary)


def load_checkpoint(run_dir: Path, *, fingerprint: str) -> dict[str, Any] | None:
    """Return the state in `run_dir` if it belongs to the same run, None if there is no such state.

    Args:
        run_dir: The run's folder.
        fingerprint: Digest of recipe, seed and cases. The state of another run is not used.

    Raises:
        CheckpointError: If the file exists but cannot be read.
    """
    path = run_dir / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); remove it to start the run again"
        ) from error
    if state.get("fingerprint") != fingerprint:
        logger.info(
            "%s belongs to another run (recipe, seed or cases differ): starting again", path
        )
        return None
    return state
