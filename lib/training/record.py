"""Options of a training run, and the record of everything that decides its result.

The record is printed at the start of the run, and stored with its checkpoint and on the model card.
"""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from lib import __version__
from lib.backends.eager import fast_bfloat16
from lib.config import APP_DIR
from lib.errors import ConfigError
from lib.models.registry import Model
from lib.recipes.schema import Recipe
from lib.storage.atomic_files import replacing
from lib.training.cases import Case, PreparedCase, digest_of
from lib.training.crops import Favoured
from lib.training.distributed import ProcessGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of a training run, beside its recipe and cases.

    Attributes:
        seed: Random seed of the first weights and of every crop.
        device: `cpu`, `cuda` or `cuda:N`.
        max_minutes: Wall-clock budget: the schedule is compressed so that the run ends in time. Such a run
            depends on the machine's speed and is not repeatable bit for bit. None for no budget.
        cpu_minutes: Budget in processor time of the training steps (`lib.training.schedule.Budget`).
        epochs: Number of epochs; None for the recipe's number.
        precision: `auto` computes in bfloat16 if the device is fast at it; `float32` never does, so that
            other machines come close to the same weights.
        favoured: Cases that crops are drawn from more often.
        resume: Continue from the folder's checkpoint if it belongs to the same run.
    """

    seed: int = 0
    device: str = "cpu"
    max_minutes: float | None = None
    cpu_minutes: float | None = None
    epochs: int | None = None
    precision: Literal["auto", "float32"] = "auto"
    favoured: Favoured = field(default_factory=Favoured)
    resume: bool = True

    def __post_init__(self) -> None:
        limits = (self.max_minutes, self.cpu_minutes)
        if None not in limits:
            raise ConfigError(
                "max_minutes and cpu_minutes are both set; limit a run in one of them only"
            )
        if any(limit is not None and not limit > 0 for limit in limits):
            raise ConfigError(f"the time limit of a run must be above 0 minutes, not {limits}")

    @property
    def in_bfloat16(self) -> bool:
        """Whether the network computes in bfloat16; its weights and the loss are float32 either way."""
        return self.precision == "auto" and fast_bfloat16(self.device)


RECORD_FILE = "config.yaml"


def run_record(
    recipe: Recipe,
    options: RunOptions,
    cases: Sequence[PreparedCase],
    validation_cases: Sequence[Case],
    *,
    initial: Model | None,
    group: ProcessGroup,
) -> dict[str, Any]:
    """Return everything that decides the result of a run, as plain values, with every default.

    A case is listed with the digest of its scan and label, so that a changed label shows.
    """
    record = {
        "recipe": recipe.as_dict(),
        "options": asdict(options),
        "initial": initial.version if initial else None,
        "cases": {case.image_id: case.digest for case in cases},
        "validation_cases": {case.image_id: _digest(case) for case in validation_cases},
        "code": {"version": __version__, **_commit(APP_DIR)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "monai": version("monai"),
            "numpy": np.__version__,
        },
        "machine": {
            "device": _device_name(options.device),
            "arithmetic": "bfloat16" if options.in_bfloat16 else "float32",
            "processes": group.size,
            "threads": torch.get_num_threads(),
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def as_yaml(record: Mapping[str, Any]) -> str:
    """Return the record as YAML, in its order, with short lists on one line."""
    return str(yaml.safe_dump(dict(record), sort_keys=False, default_flow_style=None, width=100))


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write the record into the run's folder."""
    with replacing(run_dir / RECORD_FILE) as temporary:
        temporary.write_text(as_yaml(record), encoding="utf-8")


def flattened(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"recipe.network.width": 16, ...}`; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _digest(case: Case) -> str | None:
    """Return the case's digest; None if it cannot be read (validation reports the error)."""
    try:
        return digest_of(case)
    except OSError:
        return None


def _commit(folder: Path) -> dict[str, Any]:
    """Return the git commit of `folder` and whether files differ from it; no commit outside a checkout."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "HEAD")
    # An installed copy may lie in another project's checkout, whose commit says nothing about this code.
    if top is None or commit is None or Path(top).resolve() != folder.resolve():
        return {"commit": None}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "is_changed": changed != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device
