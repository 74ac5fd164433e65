"""The process of one training.

    python -m lib.jobs.child_process --parent PID lib.retrain.training_process --place JSON --run NUMBER

It is started by `lib.retrain.scheduler` and by nobody else. Only one can run for a studies folder: it holds a
claim on it until it ends. It dies with the server; the next one starts it again, and it goes on from its last
epoch.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lib.config import RetrainConfig
from lib.errors import CheckpointError, OrganNetError, TrainingError
from lib.jobs.low_priority import be_modest, fewer_threads
from lib.jobs.serving_priority import ServingPriority
from lib.models.model_history import Candidate, ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Model, Registry, load_model, save_model
from lib.recipes.schema import Recipe
from lib.recipes.yaml_files import recipe_from_dict
from lib.retrain.candidate_evaluation import CandidateEvaluation
from lib.retrain.case_set_records import REFEREE, TRAIN
from lib.retrain.low_memory import is_out_of_memory, shrunk
from lib.retrain.run_records import ACTIVE, Runs, RunState
from lib.storage.database import FILE, Database
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import Run, now
from lib.training.cases import Case
from lib.training.crops import Favoured
from lib.training.progress import Progress, RunCallbacks, Step
from lib.training.run import RunOptions, TrainedModel, train

logger = logging.getLogger(__name__)

CLAIM = "training.lock"
RUNS = "training"
"""Folder of what the runs leave."""
LOOK_S = 2.0
"""How often a training looks whether somebody stopped it."""
FAILED, BUSY, STOPPED = 1, 3, 4
"""Exit codes."""


class StoppedByHandError(Exception):
    """Somebody stopped the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDirectory:
    """Where a training works.

    Attributes:
        state: The folder of the database.
        models: The registry's folder.
        starter: The weights that come with the project.
    """

    state: Path
    models: Path
    starter: Path

    def to_json(self) -> str:
        """Return it as the worker's flag."""
        return json.dumps({key: str(value) for key, value in asdict(self).items()})

    @classmethod
    def from_json(cls, text: str) -> "RunDirectory":
        """Return what `to_json` wrote."""
        return cls(**{key: Path(value) for key, value in json.loads(text).items()})

    def run_dir(self, run_id: int) -> Path:
        """Return where a run keeps its checkpoint and its log."""
        return self.state / RUNS / f"run-{run_id:05d}"


class TrainingProcess:
    """One run in one process."""

    def __init__(self, place: RunDirectory, run: Run, database: Database) -> None:
        self.place = place
        self.run = run
        self.request: Mapping[str, Any] = run.request
        self.runs = Runs(database)
        self.models = ModelHistory(database)
        self.turns = ServingPriority(place.state)
        recipe = recipe_from_dict(self.request["recipe"], source=f"run {run.id}")
        self.registry = Registry(place.models, starter=place.starter, organ_set=recipe.organ_set)
        self.recipe = recipe
        self._looked = 0.0

    def go(self) -> None:
        """Train, judge, and say in the database how it ended."""
        self.runs.change(self.run.id, state=RunState.RUNNING, pid=os.getpid(),
                         started_at=self.run.started_at or now())  # fmt: skip
        initial = self._initial()
        version = self._keep(self._train(initial), initial)
        self.runs.change(self.run.id, state=RunState.JUDGING, candidate=version)
        evaluation = CandidateEvaluation(
            registry=self.registry,
            models=self.models,
            promoter=Promoter(self.registry, self.models),
            config=RetrainConfig().changed(self.request["settings"]),
            device=self.request["device"],
            before_each=self._between,
        )
        is_promoted, reason = evaluation.evaluate(version, self._cases(REFEREE, are_doubted=False))
        state = RunState.PROMOTED if is_promoted else RunState.REJECTED
        self.runs.change(self.run.id, state=state, outcome=reason)

    def _train(self, initial: Model | None) -> TrainedModel:
        """Train; where memory does not suffice, try again with less, and say so."""
        shrinks = int(self.request.get("shrinks", 0))
        while True:
            recipe, said = shrunk(self.recipe, shrinks)
            if said:
                logger.warning("memory is short: %s", said)
            try:
                return self._train_with(recipe, initial)
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
            shrinks += 1
            _, said = shrunk(self.recipe, shrinks)
            self.request = {**self.request, "shrinks": shrinks}
            note = f"memory was short; from the beginning: {said}"
            self.runs.change(self.run.id, note=note, request=dict(self.request))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _train_with(self, recipe: Recipe, initial: Model | None) -> TrainedModel:
        settings, new = self.request["settings"], self._new_cases()
        return train(
            recipe,
            self._cases(TRAIN),
            self._cases(REFEREE, are_doubted=False),
            run_dir=self.place.run_dir(self.run.id),
            cache_dir=self.place.state / "cache",
            options=RunOptions(
                seed=self.request["seed"],
                device=self.request["device"],
                max_minutes=self.request["max_minutes"],
                favoured=Favoured(image_ids=new, share=settings["new_label_share"]),
            ),
            initial=initial,
            callbacks=RunCallbacks(on_progress=self._on_progress, on_step=self._on_step),
        )

    def _keep(self, trained: TrainedModel, initial: Model | None) -> str:
        """Put the candidate into the registry and into the database; return its version."""
        card = {**trained.card, "parent": initial.version if initial else None, "run": self.run.id}
        version = save_model(self.registry.folder, trained.weights, self.recipe, card)
        learned = [case for case in self.run.cases if case["set"] == TRAIN]
        self.models.record(
            Candidate(
                version=version,
                recipe=self.recipe.name,
                parent=initial.version if initial else None,
                run_id=self.run.id,
                commit=card["config"]["code"].get("commit"),
                labels=[
                    {"image_id": c["image_id"], "version": c["number"], "digest": c["digest"]}
                    for c in learned
                ],
                seed=self.request["seed"],
            )
        )
        return version

    def _initial(self) -> Model | None:
        """Return the model to go on from.

        Raises:
            TrainingError: If it is gone, or damaged: a run of its own from nothing would be another run.
        """
        version = self.run.initial_version
        if version is None:
            return None
        for folder in (self.place.models, self.place.starter):
            path = folder / f"{version}.safetensors"
            if path.exists():
                try:
                    return load_model(path)
                except CheckpointError as error:
                    raise TrainingError(f"cannot go on from {version}: {error}") from error
        raise TrainingError(f"cannot go on from {version}: it is no longer there")

    def _cases(self, name: str, *, are_doubted: bool = True) -> list[Case]:
        return [
            Case(case["image_id"], Path(case["image"]), Path(case["label"]))
            for case in self.run.cases
            if case["set"] == name and (are_doubted or not case["doubts"])
        ]

    def _new_cases(self) -> tuple[str, ...]:
        """Return the cases to draw more often; none where all are new, or none is."""
        train = [case for case in self.run.cases if case["set"] == TRAIN]
        new = tuple(case["image_id"] for case in train if case["is_new"])
        return new if 0 < len(new) < len(train) else ()

    def _on_progress(self, progress: Progress) -> None:
        told = {key: value for key, value in asdict(progress).items() if key != "is_validated"}
        self.runs.change(self.run.id, progress=told)
        logger.info(
            "epoch %d of %d, loss %.3f", progress.epoch, progress.total_epochs, progress.loss
        )

    def _on_step(self, _step: Step) -> None:
        self._between()

    def _between(self) -> None:
        """Let a server contour, and look whether this run is still wanted."""
        if self.turns.give_way() and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            if self.runs.get(self.run.id).state not in ACTIVE:
                raise StoppedByHandError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one training; return the exit code."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--place", required=True)
    flags.add_argument("--run", type=int, required=True)
    given = flags.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    place = RunDirectory.from_json(given.place)
    claim = ProcessLock(place.state / CLAIM)
    if not claim.try_acquire():
        logger.error("another training runs for these studies")
        return BUSY
    return _work(place, Database(place.state / FILE), given.run)


def _work(place: RunDirectory, database: Database, run_id: int) -> int:
    runs = Runs(database)
    run = runs.get(run_id)
    if run.state not in ACTIVE:
        return STOPPED
    settings = run.request["settings"]
    be_modest(
        threads=fewer_threads(int(settings["retrain_threads"])),
        device=run.request["device"],
        gpu_share=settings["retrain_gpu_share"],
    )
    try:
        TrainingProcess(place, run, database).go()
    except StoppedByHandError:
        return STOPPED
    except OrganNetError as error:
        logger.exception("training %d failed", run.id)
        runs.change(run.id, state=RunState.FAILED, outcome=str(error))
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
