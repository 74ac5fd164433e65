"""Jobs that a worker process computes one after another, requested and answered in lines of JSON.

The next job is chosen after each answer, so a submitted label or a new model counts at once.
"""

import json
import logging
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import OrganNetError
from lib.jobs.child_process import start_child
from lib.jobs.priority import background_threads
from lib.jobs.supervisor import Supervisor

logger = logging.getLogger(__name__)

LOCK = "scoring.lock"
LOG = "scoring.log"
POLL_S = 2.0
"""Longest time between two searches for a job, in s."""
IDLE_LIMIT_S = 60.0
"""Idle time, in s, after which the worker process is ended: it holds a network in memory."""
ANSWER_LIMIT_S = 1800.0
"""Longest time for one answer, in s; after that the process counts as hung.

It is long because inference has priority, which delays answers on a busy server.
"""
_SELECT_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """Result of a job, as the worker process answers it."""

    values: Mapping[str, Any]
    """Computed values; empty if the job failed."""
    error: str | None
    """Error message of a job that failed."""
    seconds: float = 0.0
    """Computing time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One computation."""

    description: str
    """Name of the job in the log."""
    request: Callable[[], Mapping[str, Any]]
    """Returns the request to the worker process; raises an `OrganNetError` if a file is missing."""
    store: Callable[[JobResult], object]
    """Stores the result, also of a job that failed, so that the job is not chosen again."""


class JobRunner(Supervisor):
    """Runs jobs in a worker process as long as there are any.

    Args:
        folder: Folder of the workflow database, for the lock and the log.
        sources: Each returns its next job, or None; earlier sources go first.
        worker: Module of the worker process.
        flags: Command line of the worker process.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Callable[[], Job | None]],
        *,
        worker: str,
        flags: Sequence[str],
    ) -> None:
        super().__init__(
            "job-runner", folder / LOCK, every_s=POLL_S, error_message="a background job failed"
        )
        self._log = folder / LOG
        self._sources = sources
        self._worker = worker
        self._flags = flags
        self._last_answer = 0.0

    def tick(self) -> bool:
        """Run the next job, if this server is the one that runs jobs; return whether there was one."""
        is_busy = self._lock.try_acquire() and self.step()
        if not is_busy and time.monotonic() - self._last_answer > IDLE_LIMIT_S:
            self.kill_child()
        return is_busy

    def step(self) -> bool:
        """Run the next job; return whether there was one."""
        job = next((job for source in self._sources if (job := source()) is not None), None)
        if job is None:
            return False
        try:
            result = self._run(job.request())
        except OrganNetError as error:
            result = JobResult(values={}, error=str(error))
        except (OSError, ValueError) as error:
            self.kill_child()
            if self._task.is_stopping:
                return False
            result = JobResult(values={}, error=f"its process ended: {error}")
        if result.error:
            logger.warning("%s: %s", job.description, result.error)
        job.store(result)
        return True

    def _run(self, request: Mapping[str, Any]) -> JobResult:
        """Return the worker's answer to a request.

        Raises:
            OSError: If the worker has ended, or does not answer.
        """
        child = self._running_child()
        if child.stdin is None or child.stdout is None:
            raise OSError("the worker process has no pipes")
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while not select.select([child.stdout], [], [], _SELECT_S)[0]:
            if self._task.is_stopping:
                raise OSError("the server is stopping")
            if time.monotonic() > deadline:
                raise OSError(f"no answer within {ANSWER_LIMIT_S:.0f} s")
        line = child.stdout.readline()
        if not line:
            raise OSError(f"exit code {child.wait(10)}; see its log, {self._log}")
        self._last_answer = time.monotonic()
        return JobResult(**json.loads(line))

    def _running_child(self) -> "subprocess.Popen[bytes]":
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.kill_child()
        self._child = start_child(
            self._worker, self._flags, threads=background_threads(), log=self._log, has_pipes=True
        )
        return self._child
