"""Trainings: planned, running, ended; what a restarted server finds of them."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lib.errors import StateError
from lib.storage.database import Database
from lib.storage.tables import Run, now


class RunState(str, Enum):
    """Where a run is."""

    QUEUED = "queued"
    RUNNING = "running"
    JUDGING = "judging"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"
    STOPPED = "stopped"


ACTIVE = (RunState.QUEUED, RunState.RUNNING, RunState.JUDGING)
"""A run in one of these is not over: if no process works on it, one has to be started."""
JUDGED = (RunState.PROMOTED, RunState.REJECTED)


class Runs:
    """Every training there was."""

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
            StateError: If another one is not over yet: there is never a pile of them.
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
            StateError: If there is none of that number.
        """
        with self._database.reading() as session:
            return _require(session, run_id)

    def change(self, run_id: int, *, note: str | None = None, **values: Any) -> Run:
        """Set some columns of a run, and return it; one that is over is not changed any more.

        Raises:
            StateError: If there is none of that number.
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

    def again(self, run_id: int) -> Run:
        """Queue a run that was stopped once more: it goes on from its checkpoint.

        Raises:
            StateError: If it was not stopped, or another one is not over.
        """
        with self._database.writing() as session:
            run = session.get(Run, run_id)
            active = session.scalar(select(Run.id).where(Run.state.in_(ACTIVE)))
            if run is None or run.state != RunState.STOPPED or active is not None:
                raise StateError(f"training {run_id} cannot go on")
            run.state, run.ended_at, run.outcome = RunState.QUEUED, None, None
        return run

    def active(self) -> Run | None:
        """Return the run that is not over."""
        with self._database.reading() as session:
            return session.scalar(select(Run).where(Run.state.in_(ACTIVE)).order_by(Run.id))

    def all(self, *, limit: int | None = None) -> list[Run]:
        """Return the runs, newest first."""
        with self._database.reading() as session:
            return list(session.scalars(select(Run).order_by(Run.id.desc()).limit(limit)))

    def last(self) -> Run | None:
        """Return the newest run."""
        return next(iter(self.all(limit=1)), None)

    def judged_digests(self) -> set[tuple[str, str]]:
        """Return image id and digest of each label that a run which ended with a ruling had before it."""
        with self._database.reading() as session:
            listed = session.scalars(select(Run.cases).where(Run.state.in_(JUDGED)))
            return {(case["image_id"], case["digest"]) for cases in listed for case in cases}

    def failures(self) -> int:
        """Return how many runs failed one after another, up to the last one."""
        count = 0
        for run in self.all(limit=50):
            if run.state != RunState.FAILED:
                break
            count += 1
        return count


def _require(session: Session, run_id: int) -> Run:
    run = session.get(Run, run_id)
    if run is None:
        raise StateError(f"there is no training {run_id}")
    return run
