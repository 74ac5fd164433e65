"""Worker process of one training run: train, evaluate the candidate model, promote or reject it.

    python -m lib.jobs.child_process --parent PID lib.retrain.training_process --folders JSON --run NUMBER

Only `lib.retrain.scheduler` starts it. It holds a file lock until it ends, so that one training runs per
studies folder. It ends with the server; the next server starts it again, and it continues from its last
epoch.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lib.config import RetrainConfig
from lib.errors import CheckpointError, OrganNetError, TrainingError
from lib.jobs.child_process import replace_process
from lib.jobs.priority import ServingPriority, lower_priority, training_threads
from lib.models.model_history import PROMOTED, WAITING, Candidate, ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Model, Registry, load_model, save_model
from lib.recipes.schema import Recipe
from lib.recipes.yaml_files import recipe_from_dict
from lib.retrain.candidate_evaluation import CandidateEvaluation
from lib.retrain.runs import ACTIVE, TRAINING_LOCK, ExitCode, Runs, RunState, TrainingFolders
from lib.retrain.training_set import EVALUATION, TRAIN
from lib.storage.database import FILE as DATABASE_FILE
from lib.storage.database import Database
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import Run, now
from lib.training.cache_limit import limit_cache
from lib.training.case_scores import FOLDER, CaseScores
from lib.training.cases import CACHE_FOLDER, Case, cache_name
from lib.training.crops import Favoured
from lib.training.low_memory import is_out_of_memory, reduce_memory
from lib.training.progress import Progress, RunCallbacks, Step
from lib.training.run import RunOptions, TrainedModel, train

logger = logging.getLogger(__name__)

STOP_CHECK_S = 2.0
"""Shortest time between two checks whether the run was stopped, in s."""


class StoppedByHandError(Exception):
    """The run was stopped by a user."""


class MemoryShortError(Exception):
    """Memory ran out; the run continues in a fresh process with smaller batches or crops."""


class TrainingProcess:
    """One training run in one process."""

    def __init__(self, folders: TrainingFolders, run: Run, database: Database) -> None:
        self.folders = folders
        self.run = run
        self.request: Mapping[str, Any] = run.request
        self.runs = Runs(database)
        self.models = ModelHistory(database)
        self.priority = ServingPriority(folders.state)
        recipe = recipe_from_dict(self.request["recipe"], source=f"run {run.id}")
        self.recipe = recipe
        self.registry = Registry(
            folders.models, starter=folders.starter, organ_set=recipe.organ_set
        )
        self.cache = folders.state / CACHE_FOLDER
        self.scores = CaseScores(self.cache / FOLDER, device=self.request["device"])
        self._last_stop_check = 0.0

    def work(self) -> None:
        """Train, evaluate the candidate model, and record the result."""
        self.runs.update(self.run.id, state=RunState.RUNNING, pid=os.getpid(),
                         started_at=self.run.started_at or now())  # fmt: skip
        initial = self._initial()
        version = self._save(self._train(initial), initial)
        self.runs.update(self.run.id, state=RunState.EVALUATING, candidate=version)
        row = self.models.get(version)
        if row is not None and row.decision != WAITING:
            # The process was killed between the decision and the end of the run.
            is_promoted, reason = row.decision == PROMOTED, row.reason
        else:
            is_promoted, reason = self._evaluate(version)
        state = RunState.PROMOTED if is_promoted else RunState.REJECTED
        self.runs.update(self.run.id, state=state, outcome=reason)

    def _evaluate(self, version: str) -> tuple[bool, str]:
        """Evaluate the candidate model and act on the decision; return whether it is promoted, and why."""
        evaluation = CandidateEvaluation(
            registry=self.registry,
            models=self.models,
            promoter=Promoter(self.registry, self.models),
            config=RetrainConfig().changed(self.request["settings"]),
            device=self.request["device"],
            before_each=self._between_steps,
            scores=self.scores,
        )
        return evaluation.evaluate(version, self._cases(EVALUATION, are_doubted=False))

    def _train(self, initial: Model | None) -> TrainedModel:
        """Train with the batch and crop that fit into memory as far as is known.

        Raises:
            MemoryShortError: If memory ran out. The run now asks for smaller batches or crops.
            TrainingError: If they cannot be smaller.
        """
        shrinks = int(self.request.get("shrinks", 0))
        recipe, change = reduce_memory(self.recipe, shrinks)
        if change:
            logger.warning("memory is short: %s", change)
        try:
            return self._train_with(recipe, initial)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            _, change = reduce_memory(self.recipe, shrinks + 1)
            self.runs.update(
                self.run.id,
                note=f"memory was short; started again: {change}",
                request={**self.request, "shrinks": shrinks + 1},
            )
            raise MemoryShortError from error

    def _train_with(self, recipe: Recipe, initial: Model | None) -> TrainedModel:
        settings, new = self.request["settings"], self._new_cases()
        return train(
            recipe,
            self._cases(TRAIN),
            self._cases(EVALUATION, are_doubted=False),
            run_dir=self.folders.run_dir(self.run.id),
            cache_dir=self.cache,
            options=RunOptions(
                seed=self.request["seed"],
                device=self.request["device"],
                max_minutes=self.request["max_minutes"],
                cpu_minutes=self.request.get("cpu_minutes"),
                favoured=Favoured(image_ids=new, share=settings["new_label_share"]),
            ),
            initial=initial,
            callbacks=RunCallbacks(
                on_start=self._on_start,
                on_progress=self._on_progress,
                on_step=self._between_steps,
            ),
        )

    def _save(self, trained: TrainedModel, initial: Model | None) -> str:
        """Add the candidate model to the registry and the database; return its version."""
        card = {**trained.card, "parent": initial.version if initial else None, "run": self.run.id}
        version = save_model(self.registry.folder, trained.weights, self.recipe, card)
        self.models.record(
            Candidate(
                version=version,
                recipe=self.recipe.name,
                parent=initial.version if initial else None,
                run_id=self.run.id,
                commit=card["config"]["code"].get("commit"),
                labels=[
                    {"image_id": c["image_id"], "version": c["number"], "digest": c["digest"]}
                    for c in self.run.cases
                    if c["set"] == TRAIN
                ],
                seed=self.request["seed"],
            )
        )
        return version

    def _initial(self) -> Model | None:
        """Return the model that the run starts from, if any.

        Raises:
            TrainingError: If it is missing or damaged: a start from random weights would not be this run.
        """
        version = self.run.initial_version
        if version is None:
            return None
        try:
            return load_model(self.registry.weights_path(version))
        except CheckpointError as error:
            raise TrainingError(
                f"cannot start from {version}: {error}; start a new training"
            ) from error

    def _cases(self, name: str, *, are_doubted: bool = True) -> list[Case]:
        return [
            Case(case["image_id"], Path(case["image"]), Path(case["label"]))
            for case in self.run.cases
            if case["set"] == name and (are_doubted or not case["doubts"])
        ]

    def _new_cases(self) -> tuple[str, ...]:
        """Return the new cases, which are sampled more often; empty if all cases are new, or none."""
        train = [case for case in self.run.cases if case["set"] == TRAIN]
        new = tuple(case["image_id"] for case in train if case["is_new"])
        return new if 0 < len(new) < len(train) else ()

    def _on_start(self, record: Mapping[str, Any]) -> None:
        """Keep the cache of prepared cases within its limit, now that the cases of this run are in it."""
        in_use = {cache_name(digest, self.recipe) for digest in record["cases"].values()}
        limit_bytes = self.request["settings"]["training_cache_gib"] * 2**30
        removed = limit_cache(self.cache, limit_bytes, in_use=in_use)
        if removed:
            logger.info("%d old entries of the cache were removed", removed)

    def _on_progress(self, progress: Progress) -> None:
        values = {key: value for key, value in asdict(progress).items() if key != "is_validated"}
        self.runs.update(self.run.id, progress=values)
        logger.info(
            "epoch %d of %d, loss %.3f", progress.epoch, progress.total_epochs, progress.loss
        )

    def _between_steps(self, _step: Step | None = None) -> None:
        """Wait while a server runs inference, and check whether this run was stopped."""
        if self.priority.give_way() and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if time.monotonic() - self._last_stop_check > STOP_CHECK_S:
            self._last_stop_check = time.monotonic()
            if self.runs.get(self.run.id).state not in ACTIVE:
                raise StoppedByHandError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one training; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", required=True)
    parser.add_argument("--run", type=int, required=True)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folders = TrainingFolders.from_json(options.folders)
    lock = ProcessLock(folders.state / TRAINING_LOCK)
    if not lock.try_acquire():
        logger.error("another training is running for these studies")
        return ExitCode.BUSY
    database = Database(folders.state / DATABASE_FILE)
    runs = Runs(database)
    run = runs.get(options.run)
    if run.state not in ACTIVE:
        return ExitCode.STOPPED
    settings = run.request["settings"]
    lower_priority(
        threads=training_threads(int(settings["retrain_threads"])),
        device=run.request["device"],
        gpu_share=settings["retrain_gpu_share"],
    )
    try:
        TrainingProcess(folders, run, database).work()
    except StoppedByHandError:
        return ExitCode.STOPPED
    except MemoryShortError:
        # What libraries and the heap keep of a failed attempt would be missing in the next one.
        replace_process("lib.retrain.training_process", sys.argv[1:] if argv is None else argv)
    except OrganNetError as error:
        logger.exception("training %d failed", run.id)
        runs.update(run.id, state=RunState.FAILED, outcome=str(error))
        return ExitCode.FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
