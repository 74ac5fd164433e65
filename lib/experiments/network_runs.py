"""Runs of a network comparison: each is trained in its own process and evaluated on the held-out cases."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

LOG = "train.log"
PREDICTIONS = "held-out"
METRICS = "metrics.csv"
OUTCOME = "outcome.json"


@dataclass(frozen=True, slots=True, order=True)
class NetworkRun:
    """One run of a comparison."""

    recipe: str
    """Name of a recipe, or path of a YAML file, as it was given."""
    network: str
    """A key of `lib.networks.build.NETWORKS`."""
    seed: int
    """Seed of the initial weights and the training crops."""

    @property
    def folder(self) -> str:
        """Return the name of the run's folder."""
        return f"{Path(self.recipe).stem}-{self.network}-seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkResult:
    """Result of one run on the held-out cases."""

    network: str
    recipe: str
    seed: int
    version: str
    parameters: int
    training: Mapping[str, Any]
    """The `training` entry of the model card."""
    curve: Sequence[tuple[float, float]]
    """`(training time in minutes, mean DSC)` of each validation."""
    seconds_per_case: float
    """Median time to contour a held-out case."""
    rows: Sequence[Row]
    """Metrics of each organ that the reference of a held-out case contains."""

    def mean(self, metric: str, organs: Sequence[str]) -> float:
        """Return the mean over organs of each organ's mean over cases; undefined distances are left out."""
        return float(np.mean([self.organ_mean(metric, organ) for organ in organs]))

    def organ_mean(self, metric: str, organ: str) -> float:
        """Return the mean of one organ over the cases; NaN if the metric is defined in no case."""
        values = [getattr(row, metric) for row in self.rows if row.organ == organ]
        defined = [value for value in values if np.isfinite(value)]
        return float(np.mean(defined)) if defined else float("nan")


def network_runs(
    recipes: Sequence[str], networks: Sequence[str], seeds: Sequence[int]
) -> list[NetworkRun]:
    """Return every combination of recipe, network and seed, ordered by seed first.

    An interrupted comparison then holds every network once rather than one network three times.
    """
    return [
        NetworkRun(recipe, network, seed)
        for seed in dict.fromkeys(seeds)
        for recipe in dict.fromkeys(recipes)
        for network in dict.fromkeys(networks)
    ]


def train_all(
    runs: Sequence[NetworkRun],
    command: Sequence[str],
    output: Path,
    *,
    jobs: int,
    on_end: Callable[[NetworkRun, str | None], object],
) -> None:
    """Train each run in its own process, `jobs` at a time, each on an equal share of the CPU cores.

    If a run fails, `on_end` gets the reason and the other runs continue. An interrupted run is resumed.

    Args:
        runs: The runs to train.
        command: Training program and the arguments common to all runs: studies, held-out cases, budget.
        output: Folder for one folder per run, with its log.
        jobs: Number of simultaneous runs.
        on_end: Called with each finished run, and with the reason if it failed, else None.

    Raises:
        TrainingError: If `jobs` is below 1.
    """
    if jobs < 1:
        raise TrainingError(f"jobs must be at least 1, not {jobs}")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    processes: set[subprocess.Popen[bytes]] = set()

    def train_one(run: NetworkRun) -> None:
        folder = output / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [
            *("--recipe", run.recipe, "--network", run.network),
            *("--seed", str(run.seed), "--output", str(folder)),
        ]
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
            processes.add(process)
            code = process.wait()
            processes.discard(process)
        on_end(run, None if code == 0 else _failure_reason(folder / LOG, code))

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train_one, run) for run in runs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            # Also on Ctrl-C: otherwise the pool would wait for trainings that take hours.
            for future in futures:
                future.cancel()
            for process in list(processes):
                process.terminate()
            raise


def evaluate_run(folder: Path, held_out: Sequence[Case], *, device: str) -> NetworkResult:
    """Return the result of the model in `folder` on `held_out`.

    Contours and metrics are kept in the folder and reused as long as model and cases are the same.

    Raises:
        CheckpointError: If the folder does not hold exactly one model.
        TrainingError: If a held-out case cannot be evaluated.
    """
    model = load_model(_weights_file(folder), device)
    outcome = _read_outcome(folder / OUTCOME)
    references = {case.image_id: case.label for case in held_out}
    if outcome.get("version") != model.version or outcome.get("cases") != sorted(references):
        predictions, seconds = {}, []
        for case in held_out:
            ct = read_ct(case.image, image_id=case.image_id)
            started = time.perf_counter()
            prediction = contour(ct, model, device=device)
            seconds.append(time.perf_counter() - started)
            predictions[case.image_id] = folder / PREDICTIONS / f"{case.image_id}.nii.gz"
            write_label(predictions[case.image_id], prediction.label)
        evaluation = evaluate(references, predictions, values=model.recipe.labels)
        if evaluation.refused:
            raise TrainingError("; ".join(evaluation.refused.values()))
        write_csv(folder / METRICS, evaluation.rows)
        outcome = {
            "version": model.version,
            "cases": sorted(references),
            "seconds_per_case": round(float(np.median(seconds)), 3),
        }
        write_json(folder / OUTCOME, outcome)
    return NetworkResult(
        network=model.recipe.network.name,
        recipe=model.recipe.name,
        seed=int(model.card["training"]["seed"]),
        version=model.version,
        parameters=sum(p.numel() for p in model.network.parameters()),
        training=model.card["training"],
        curve=_validation_curve(model.card),
        seconds_per_case=outcome["seconds_per_case"],
        rows=read_csv(folder / METRICS),
    )


def _failure_reason(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")] or lines
    return f"exit code {code}: {errors[-1] if errors else 'the log is empty'} (see {log})"


def _weights_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder}: {len(files)} models found, expected one; use a separate output folder for each "
            "comparison"
        )
    return files[0]


def _read_outcome(path: Path) -> dict[str, Any]:
    """Return the stored outcome; empty if it is missing or damaged, so that the run is evaluated again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _validation_curve(card: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [
        (float(entry["spent_s"]) / 60, float(np.mean(list(entry["organ_dice"].values()))))
        for entry in card.get("history", [])
        if entry.get("organ_dice") and "spent_s" in entry
    ]
