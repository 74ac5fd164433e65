"""The training process, started as the scheduler starts it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib.config import APP_DIR, RetrainConfig
from lib.models.model_history import ModelHistory
from lib.recipes.schema import Recipe
from lib.retrain.runs import TRAINING_LOCK, ExitCode, Runs, RunState, TrainingFolders
from lib.retrain.training_set import run_request
from lib.storage.database import FILE, Database
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import Run
from lib.training.cases import Case
from tests.tiny import TINY

WITH_LITTLE_MEMORY = """
import resource, sys
import lib.retrain.training_process as worker
used = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 1800 * 2**20,) * 2)
sys.exit(worker.main(sys.argv[1:]))
"""
NO_MINIMUM = RetrainConfig(min_first_dsc=0.0, retrain_threads=1)


@pytest.fixture
def folders(tmp_path: Path) -> TrainingFolders:
    for name in ("state", "models", "starter"):
        (tmp_path / name).mkdir()
    return TrainingFolders(
        state=tmp_path / "state", models=tmp_path / "models", starter=tmp_path / "starter"
    )


@pytest.fixture
def database(folders: TrainingFolders) -> Iterator[Database]:
    made = Database(folders.state / FILE)
    yield made
    made.close()


def queue(database: Database, cases: Sequence[Case], recipe: Recipe = TINY) -> Run:
    """Queue a run with the first case for evaluation and the others for training."""
    listed: list[dict[str, Any]] = [
        {"image_id": case.image_id, "image": str(case.image), "label": str(case.label), "number": 1,
         "digest": str(number) * 64, "organs": [], "doubts": [], "is_new": True,
         "set": "train" if number else "referee"}
        for number, case in enumerate(cases)
    ]  # fmt: skip
    request = run_request(recipe, None, NO_MINIMUM, {}, device="cpu")
    return Runs(database).queue(
        why="for a test", request=request, cases=listed, initial_version=None
    )


def run_process(
    folders: TrainingFolders,
    run: Run,
    *,
    program: Sequence[str] = ("-m", "lib.retrain.training_process"),
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *program, "--folders", folders.to_json(), "--run", str(run.id)]
    environment = {**os.environ, "PYTHONPATH": str(APP_DIR), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=APP_DIR, env=environment
    )


def test_a_run_ends_with_a_promotion_decision(
    folders: TrainingFolders, database: Database, cases: list[Case]
) -> None:
    run = queue(database, cases)
    process = run_process(folders, run)
    assert process.returncode == 0, process.stderr
    ended = Runs(database).get(run.id)
    assert ended.state == RunState.PROMOTED
    assert ended.outcome is not None
    assert ended.outcome.startswith("there is no active model; mean DSC 0.")
    assert ended.progress["epoch"] == TINY.schedule.epochs
    model = ModelHistory(database).get(str(ended.candidate))
    assert model is not None
    assert (model.decision, model.run_id, model.recipe) == ("promoted", run.id, "tiny")
    assert [label["image_id"] for label in model.labels] == ["case_1", "case_2"]
    assert list(model.report["cases"]) == ["case_0"]
    # A run that has ended is not evaluated again.
    assert run_process(folders, run).returncode == ExitCode.STOPPED


def test_one_training_runs_per_studies_folder(
    folders: TrainingFolders, database: Database, cases: list[Case]
) -> None:
    other = ProcessLock(folders.state / TRAINING_LOCK)
    assert other.try_acquire()
    run = queue(database, cases)
    assert run_process(folders, run).returncode == ExitCode.BUSY
    assert Runs(database).get(run.id).state == RunState.QUEUED


def test_when_memory_runs_out_the_training_uses_less_and_notes_it(
    folders: TrainingFolders, database: Database, cases: list[Case]
) -> None:
    # One crop of 160^3 voxels takes some GiB in the backward pass of a network of this width.
    large = replace(
        TINY,
        crop_vox=(160, 160, 160),
        network=replace(TINY.network, width=8),
        schedule=replace(TINY.schedule, epochs=1, steps_per_epoch=1, batch_size=2),
    )
    run = queue(database, cases, large)
    process = run_process(folders, run, program=("-c", WITH_LITTLE_MEMORY))
    assert process.returncode == 0, process.stderr
    ended = Runs(database).get(run.id)
    assert "memory was short; started again: a batch is 1 instead of 2 crops" in ended.notes[0]
    assert "a crop is 80 x 80 x 80 instead of 160 x 160 x 160 voxels" in ended.notes[1]
    assert ended.request["shrinks"] == len(ended.notes)


def test_a_run_that_cannot_continue_fails_with_the_reason(
    folders: TrainingFolders, database: Database, cases: list[Case]
) -> None:
    run = queue(database, cases[:1])
    assert run_process(folders, run).returncode == 1
    ended = Runs(database).get(run.id)
    assert ended.state == RunState.FAILED
    assert ended.outcome is not None
    assert ended.outcome.startswith("none of 0 cases can be trained on")
