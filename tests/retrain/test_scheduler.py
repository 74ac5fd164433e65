"""The scheduler without a training process; tests with one are in `tests/server` and `tests/chaos`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.config import RetrainConfig
from lib.retrain.runs import Runs, RunState, TrainingFolders
from lib.retrain.scheduler import Scheduler
from lib.retrain.training_set import CaseSets, TrainingSetPlanner
from lib.storage.database import FILE, Database
from lib.storage.tables import Run


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / FILE)
    yield made
    made.close()


def queued(runs: Runs) -> Run:
    return runs.queue(why="a test", request={}, cases=[], initial_version=None)


def scheduler(folders: TrainingFolders, database: Database) -> Scheduler:
    runs = Runs(database)
    return Scheduler(
        folders=folders,
        planner=TrainingSetPlanner(list, CaseSets(database), runs, set, bool),
        settings=RetrainConfig,
        queue=lambda _: queued(runs),
        after_crash=lambda: None,
        resolve=lambda _run: None,
    )


def put_checkpoint(folders: TrainingFolders, run: Run) -> Path:
    folder = folders.run_dir(run.id)
    folder.mkdir(parents=True)
    for name in ("checkpoint.pt", "log.txt"):
        (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize("last", [RunState.STOPPED, RunState.PROMOTED])
def test_checkpoints_of_a_killed_server_are_removed_unless_the_run_can_be_continued(
    database: Database, tmp_path: Path, last: RunState
) -> None:
    folders = TrainingFolders(state=tmp_path, models=tmp_path / "models", starter=tmp_path / "none")
    runs = Runs(database)
    left = []
    for state in (RunState.PROMOTED, RunState.FAILED, RunState.STOPPED, last):
        run = queued(runs)
        left.append(put_checkpoint(folders, run))
        runs.update(run.id, state=state)
    second_server = scheduler(folders, database)
    second_server.tick()
    second_server.stop()
    has_checkpoint = [(folder / "checkpoint.pt").exists() for folder in left]
    assert has_checkpoint == [False, False, False, last is RunState.STOPPED]
    assert all((folder / "log.txt").exists() for folder in left)
