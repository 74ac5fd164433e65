"""What a run is, in one record: printed at its start, stored with its checkpoints and on its card."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
import yaml

from lib import __version__
from lib.config import APP_DIR
from lib.models.registry import Model
from lib.recipes.schema import Recipe
from lib.storage.atomic_files import replacing
from lib.training.cases import Case, PreparedCase, digest_of
from lib.training.distributed import Group
from lib.training.options import RunOptions

FILE = "config.yaml"


def run_record(
    recipe: Recipe,
    options: RunOptions,
    cases: Sequence[PreparedCase],
    validation_cases: Sequence[Case],
    *,
    initial: Model | None,
    group: Group,
) -> dict[str, Any]:
    """Return everything that decides a run, as plain values, each default written out.

    A case is named with the digest of its scan and label, so that another contour is seen to be another case.
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
            "monai": monai.__version__,
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
    """Return the record as YAML, in its own order, short lists on one line."""
    return str(yaml.safe_dump(dict(record), sort_keys=False, default_flow_style=None, width=100))


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write the record into the run's folder."""
    with replacing(run_dir / FILE) as beside:
        beside.write_text(as_yaml(record), encoding="utf-8")


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
    """Return the case's digest; None where it cannot be read, which validation reports."""
    try:
        return digest_of(case)
    except OSError:
        return None


def _commit(folder: Path) -> dict[str, Any]:
    """Return the commit of the checkout at `folder` and whether files differ from it; nothing elsewhere."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "HEAD")
    # A checkout around an installed copy of ours says nothing of our code.
    if top is None or commit is None or Path(top).resolve() != folder.resolve():
        return {"commit": None}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "is_changed": changed != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        said = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device
