"""How a trained contender does on the held-out cases, kept beside its weights."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import CheckpointError, TrainingError
from lib.evaluation.table import Row, evaluate, read_csv, write_csv
from lib.imaging.scans import read_ct, write_label
from lib.inference.single_pass import contour
from lib.models.registry import load_model
from lib.storage.atomic_files import write_json
from lib.training.cases import Case

PREDICTIONS = "held-out"
METRICS = "metrics.csv"
OUTCOME = "outcome.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkResult:
    """What one run came to.

    Attributes:
        network: What it is called in the table: the network, with the recipe where several are compared.
        recipe: The recipe's name.
        seed: The run's.
        version: The model's.
        parameters: Numbers that the network learned.
        training: What the model's card says of its training.
        curve: `(budget spent in minutes, mean DSC)` of each validation.
        seconds_per_case: Median time to contour a held-out case.
        rows: One for every organ that was contoured in a held-out case.
    """

    network: str
    recipe: str
    seed: int
    version: str
    parameters: int
    training: Mapping[str, Any]
    curve: Sequence[tuple[float, float]]
    seconds_per_case: float
    rows: Sequence[Row]

    def mean(self, metric: str, organs: Sequence[str]) -> float:
        """Return the mean over organs of each organ's mean over cases; unknown distances are left out."""
        return float(np.mean([self.organ_mean(metric, organ) for organ in organs]))

    def organ_mean(self, metric: str, organ: str) -> float:
        """Return the mean of one organ over the cases; NaN where none has it."""
        values = [getattr(row, metric) for row in self.rows if row.organ == organ]
        known = [value for value in values if np.isfinite(value)]
        return float(np.mean(known)) if known else float("nan")


def result_of(folder: Path, held_out: Sequence[Case], *, device: str) -> NetworkResult:
    """Return how the model in `folder` does on `held_out`; contours each case once.

    Raises:
        CheckpointError: If the folder holds no model, or several.
    """
    path = _weights(folder)
    model = load_model(path, device)
    said = _read(folder / OUTCOME)
    asked = {case.image_id: case.label for case in held_out}
    if said.get("version") != model.version or said.get("cases") != sorted(asked):
        predictions, seconds = {}, []
        for case in held_out:
            ct = read_ct(case.image, image_id=case.image_id)
            started = time.perf_counter()
            found = contour(ct, model, device=device)
            seconds.append(time.perf_counter() - started)
            predictions[case.image_id] = folder / PREDICTIONS / f"{case.image_id}.nii.gz"
            write_label(predictions[case.image_id], found.label)
        judged = evaluate(asked, predictions, values=model.recipe.labels)
        if judged.refused:
            raise TrainingError("; ".join(judged.refused.values()))
        write_csv(folder / METRICS, judged.rows)
        said = {
            "version": model.version,
            "cases": sorted(asked),
            "seconds_per_case": round(float(np.median(seconds)), 3),
        }
        write_json(folder / OUTCOME, said)
    return NetworkResult(
        network=model.recipe.network.name,
        recipe=model.recipe.name,
        seed=int(model.card["training"]["seed"]),
        version=model.version,
        parameters=sum(p.numel() for p in model.network.parameters()),
        training=model.card["training"],
        curve=_curve(model.card),
        seconds_per_case=said["seconds_per_case"],
        rows=read_csv(folder / METRICS),
    )


def _weights(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder}: {len(files)} models found, expected one; "
            "give each comparison a folder of its own"
        )
    return files[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _curve(card: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the validations of a run against its epochs' share of the time."""
    history = card.get("history", [])
    return [
        (float(entry["spent_s"]) / 60, float(np.mean(list(entry["organ_dice"].values()))))
        for entry in history
        if entry.get("organ_dice") and "spent_s" in entry
    ]
