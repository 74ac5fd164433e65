"""Stored DSC of models on cases, so that a model is not evaluated twice on the same case."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lib.backends.eager import usual_precision
from lib.config import APP_DIR
from lib.models.registry import Model
from lib.storage.atomic_files import write_json
from lib.training.cases import Case, digest_of

FOLDER = "scores"
"""Folder of the stored scores, in the cache of prepared cases."""


class CaseScores:
    """DSC per organ of models on cases, as small files.

    A stored DSC is used only if nothing that it depends on has changed: the weights, the fields of the recipe
    that inference reads, the content of scan and label, the source code of `lib`, PyTorch, and the arithmetic
    of the device.

    Args:
        folder: Folder of the files; created when needed.
        device: Device of the networks.
    """

    def __init__(self, folder: Path, *, device: str) -> None:
        self._folder = folder
        self._device = device

    def of(self, model: Model) -> "ModelScores":
        """Return the scores of a model with its present weights."""
        recipe = model.recipe
        digest = hashlib.sha256(
            json.dumps(
                [
                    recipe.preparation_digest(),
                    recipe.crop_vox,
                    recipe.as_dict()["network"],
                    torch.device(self._device).type,
                    usual_precision(self._device),
                    torch.__version__,
                    _code_digest(),
                ]
            ).encode()
        )
        for name, tensor in sorted(model.network.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.numpy().tobytes())
        return ModelScores(self._folder, digest.hexdigest())


class ModelScores:
    """DSC per organ of one model on cases."""

    def __init__(self, folder: Path, model_digest: str) -> None:
        self._folder = folder
        self._model_digest = model_digest

    def get(self, case: Case) -> dict[str, float] | None:
        """Return organ -> DSC; None if it is not stored, or the file is damaged.

        Raises:
            OSError: If the case cannot be read.
        """
        path = self._path(case)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            dice = {str(organ): float(value) for organ, value in values.items()}
            # The cache removes the entries that were used longest ago.
            os.utime(path)
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return dice

    def put(self, case: Case, dice: Mapping[str, float]) -> None:
        """Store organ -> DSC.

        Raises:
            OSError: If the case cannot be read, or the disk is full.
        """
        values: dict[str, Any] = dict(dice)
        write_json(self._path(case), values)

    def _path(self, case: Case) -> Path:
        key = f"{self._model_digest} {digest_of(case)}"
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


@cache
def _code_digest() -> str:
    """Return a digest of the source code of `lib`."""
    digest = hashlib.sha256()
    for path in sorted((APP_DIR / "lib").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
