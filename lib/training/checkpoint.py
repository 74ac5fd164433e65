"""A training run on disk: written whole after each epoch, so that a killed run goes on where it was."""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lib.errors import CheckpointError
from lib.storage.atomic_files import replacing

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
