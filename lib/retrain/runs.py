"""Training runs: their rows in the database, and their folders."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lib.errors import StateError
from lib.storage.database import Database
from lib.storage.tables import Run, now

TRAINING_LOCK = "training.lock"
"""File in the state folder that the training process locks."""
RUNS_FOLDER = "training"
"""Folder of the runs in the state folder."""


class ExitCode(IntEnum):
    """Exit codes of the training process."""

    FAILED = 1
    BUSY = 3
    """Another training is running for the same studies folder."""
    STOPPED = 4


class RunState(str, Enum):
    """State of a run. The values are stored in the database."""

    QUEUED = "queued"
    RUNNING = "running"
    EVALUATING = "judging"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"
    STOPPED = "stopped"


ACTIVE = (RunState.QUEUED, RunState.RUNNING, RunState.EVALUATING)
"""States of a run that is not over: it needs a training process."""
EVALUATED = (RunState.PROMOTED, RunState.REJECTED)


class Runs:
    """The `Run` rows of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def queue(
        self,
        *,
        why: str,
        request: Mapping[str, Any],
        cases: Sequence[Mapping[str, Any]],
        initial_version: str | None,
    ) -> Run:
        """Add a run, and return it.

        Raises:
            StateError: If another run is not over: at most one run is queued or active.
        """
        with self._database.writing() as session:
            active = session.scalar(select(Run).where(Run.state.in_(ACTIVE)))
            if active is not None:
                raise StateError(f"training {active.id} is {active.state}; DELETE /train/ stops it")
            run = Run(
                state=RunState.QUEUED,
                why=why,
                request=dict(request),
                cases=[dict(case) for case in cases],
                initial_version=initial_version,
                progress={},
                notes=[],
            )
            session.add(run)
        return run

    def get(self, run_id: int) -> Run:
        """Return a run.

        Raises:
            StateError: If there is no run of that number.
        """
        with self._database.reading() as session:
            return _require(session, run_id)

    def update(self, run_id: int, *, note: str | None = None, **values: Any) -> Run:
        """Set columns of a run, and return it; a run that is over is not changed.

        Raises:
            StateError: If there is no run of that number.
        """
        with self._database.writing() as session:
            run = _require(session, run_id)
            if run.state in ACTIVE:
                for key, value in values.items():
                    setattr(run, key, value)
                if note:
                    run.notes = [*run.notes, f"{now():%Y-%m-%d %H:%M:%S} {note}"]
                if run.state not in ACTIVE:
                    run.ended_at, run.pid = now(), None
        return run

    def requeue(self, run_id: int) -> Run:
        """Queue a stopped run again; it continues from its checkpoint.

        Raises:
            StateError: If it was not stopped, or another run is not over.
        """
        with self._database.writing() as session:
            run = session.get(Run, run_id)
            active = session.scalar(select(Run.id).where(Run.state.in_(ACTIVE)))
            if run is None or run.state != RunState.STOPPED or active is not None:
                raise StateError(
                    f"training {run_id} cannot be continued: it was not stopped, or another one is active"
                )
            run.state, run.ended_at, run.outcome = RunState.QUEUED, None, None
        return run

    def active(self) -> Run | None:
        """Return the run that is not over, if any."""
        with self._database.reading() as session:
            return session.scalar(select(Run).where(Run.state.in_(ACTIVE)).order_by(Run.id))

    def all(self, *, limit: int | None = None) -> list[Run]:
        """Return the runs, newest first."""
        with self._database.reading() as session:
            return list(session.scalars(select(Run).order_by(Run.id.desc()).limit(limit)))

    def last(self) -> Run | None:
        """Return the newest run."""
        return next(iter(self.all(limit=1)), None)

    def evaluations(self) -> int:
        """Return the number of runs whose candidate model was evaluated; it only grows."""
        evaluated = select(func.count()).select_from(Run).where(Run.state.in_(EVALUATED))
        with self._database.reading() as session:
            return session.scalar(evaluated) or 0

    def evaluated_labels(self) -> set[tuple[str, str]]:
        """Return image id and digest of each label in a run whose candidate model was evaluated."""
        with self._database.reading() as session:
            case_lists = session.scalars(select(Run.cases).where(Run.state.in_(EVALUATED)))
            return {(case["image_id"], case["digest"]) for cases in case_lists for case in cases}

    def failures(self) -> int:
        """Return the number of consecutive failed runs up to the newest run."""
        failed = itertools.takewhile(lambda r: r.state == RunState.FAILED, self.all(limit=50))
        return len(list(failed))


def _require(session: Session, run_id: int) -> Run:
    run = session.get(Run, run_id)
    if run is None:
        raise StateError(f"training {run_id} does not exist")
    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFolders:
    """Folders that a training reads and writes."""

    state: Path
    """Folder of the workflow database."""
    models: Path
    """Folder of the model registry."""
    starter: Path
    """Folder of the starter weights."""

    def to_json(self) -> str:
        """Return the value of the training process's `--folders`."""
        return json.dumps({key: str(value) for key, value in asdict(self).items()})

    @classmethod
    def from_json(cls, text: str) -> "TrainingFolders":
        """Return the folders that `to_json` wrote."""
        return cls(**{key: Path(value) for key, value in json.loads(text).items()})

    def run_dir(self, run_id: int) -> Path:
        """Return the folder of a run's checkpoint and log."""
        return self.state / RUNS_FOLDER / f"run-{run_id:05d}"

    def log_path(self, run_id: int) -> Path:
        """Return the log of a run's process."""
        return self.run_dir(run_id) / "log.txt"
