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
from lib.networks.build import build_network
from lib.recipes.schema import Recipe
from lib.storage.atomic_files import replacing
from lib.training.distributed import SINGLE_PROCESS, ProcessGroup

_Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(slots=True)
class TrainingState:
    """A run between two epochs.

    Attributes:
        network: What is trained.
        average: The moving average of its weights; None where the recipe has none.
        optimizer: Adam.
        epoch: Epochs done.
        steps: Optimiser steps taken; fewer than the epochs' where a budget ended one.
        history: One entry an epoch: loss, learning rate, seconds spent, and DSC where it was validated.
        best: Weights of the best validation, where the recipe stops early; else empty.
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
        """Become what `to_save` returned."""
        self.network.load_state_dict(saved["network"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.epoch = saved["epoch"]
        self.steps = saved["steps"]
        self.history = saved["history"]
        self.best = saved["best"]

    def served_network(self) -> nn.Module:
        """Return what would be served: the averaged network, where there is an average."""
        return self.average.module if self.average else self.network

    def keep_as_best(self) -> None:
        """Keep a copy of what would be served now."""
        self.best = {
            key: value.detach().cpu().clone()
            for key, value in self.served_network().state_dict().items()
        }

    def validated(self) -> list[dict[str, Any]]:
        """Return the entries of the history that were validated, each with its mean DSC as `mean_dice`."""
        return [
            {**entry, "mean_dice": sum(entry["organ_dice"].values()) / len(entry["organ_dice"])}
            for entry in self.history
            if entry.get("organ_dice")
        ]


def fresh_state(
    recipe: Recipe, device: str, initial: Model | None, *, group: ProcessGroup = SINGLE_PROCESS
) -> TrainingState:
    """Return a run before its first epoch, on `device`; torch's seed decides the weights, or `initial`."""
    network = build_network(recipe)
    if initial is not None:
        network.load_state_dict(initial.network.state_dict())
    network = group.with_pooled_statistics(network)
    network = network.to(device).to(memory_format=torch.channels_last_3d)
    decay = recipe.schedule.ema_decay
    average = (
        AveragedModel(network, multi_avg_fn=moving_average(decay), use_buffers=True)
        if decay
        else None
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.schedule.learning_rate)
    return TrainingState(network, average, optimizer)


def moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Return what moves averaged weights towards the network's, faster while the run is young.

    The decay is at most `(1 + n) / (10 + n)` after `n` steps (as in TensorFlow's ExponentialMovingAverage): a
    short run is not held back by weights from before it learned anything. Whole numbers (counters, SwinUNETR's
    tables of positions) are copied: PyTorch's average of one is now and then one less.
    """

    def average(averaged: _Tensors, current: _Tensors, steps: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)
            return
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(now)(averaged, current, steps)  # type: ignore[no-untyped-call]

    return average


logger = logging.getLogger(__name__)

FILE = "checkpoint.pt"

_DAMAGE = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
)
"""What torch raises for a file that is no checkpoint, by which bytes it holds."""


def save_checkpoint(run_dir: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) into `run_dir`, in the place of the last one."""
    with replacing(run_dir / FILE) as beside:
        torch.save(dict(state), beside)


def load_checkpoint(run_dir: Path, *, fingerprint: str) -> dict[str, Any] | None:
    """Return the state in `run_dir` if it belongs to the same run, None if there is none to go on from.

    Args:
        run_dir: The run's folder.
        fingerprint: What the run is of: recipe, seed and cases. Another run's state is left unused.

    Raises:
        CheckpointError: If a file is there but cannot be read.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); remove it to begin the run anew"
        ) from error
    if state.get("fingerprint") != fingerprint:
        logger.info("%s is of another run (recipe, seed or cases differ): starting anew", path)
        return None
    return state
