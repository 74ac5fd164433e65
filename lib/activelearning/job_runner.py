"""The thread that has things computed behind the server, one after another, in a process of its own.

Of several servers over one studies folder one does it; when it ends, another takes over. What is computed next
is decided anew each time, so that a submitted label or a new model counts at once.
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
from lib.jobs.low_priority import fewer_threads
from lib.jobs.periodic_task import PeriodicTask
from lib.jobs.start_child import start_child
from lib.storage.process_locks import ProcessLock

logger = logging.getLogger(__name__)

LOCK = "scoring.lock"
LOG = "scoring.log"
IDLE_S = 2.0
"""Between two looks where nothing is to be done."""
KEEP_S = 60.0
"""An idle process is ended after so long: it holds a network in memory."""
LIMIT_S = 1800.0
"""For one answer: serving goes first, so a busy day makes it slow; after this the process is taken for hung."""
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What came of an errand.

    Attributes:
        found: As `lib.activelearning.scoring_process` answers; empty where it failed.
        trouble: Why it failed.
        seconds: That it took.
    """

    found: Mapping[str, Any]
    trouble: str | None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to have computed.

    Attributes:
        about: What it is, for the log.
        order: Returns what the process is told; raises an `OrganNetError` where a file is gone.
        keep: Keeps the answer, so that the errand does not come again, whatever the answer is.
    """

    about: str
    order: Callable[[], Mapping[str, Any]]
    keep: Callable[[JobResult], object]


class JobRunner:
    """Has errands done as long as there are any.

    Args:
        folder: The workflow's.
        sources: Each returns its next errand, or None; an earlier source goes first.
        flags: Of `lib.activelearning.scoring_process`.
    """

    def __init__(
        self, folder: Path, sources: Sequence[Callable[[], Job | None]], *, flags: Sequence[str]
    ) -> None:
        self._folder = folder
        self._sources = sources
        self._flags = flags
        self._claim = ProcessLock(folder / LOCK)
        self._loop = PeriodicTask(
            "runner",
            self._turn,
            every_s=IDLE_S,
            trouble="what is computed behind the server failed",
        )
        self._child: subprocess.Popen[bytes] | None = None
        self._used = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process; None where none was started, or it has ended."""
        child = self._child
        return None if child is None or child.poll() is not None else child.pid

    def start(self) -> None:
        """Begin."""
        self._loop.start()

    def stop(self) -> None:
        """End, and the process with it; what it was at is done again by the next server."""
        self._loop.stop()
        self._end_child()
        self._claim.release()

    def wake(self) -> None:
        """Look now: something has changed."""
        self._loop.wake()

    def _turn(self) -> bool:
        is_busy = self._claim.try_acquire() and self.step()
        if not is_busy and time.monotonic() - self._used > KEEP_S:
            self._end_child()
        return is_busy

    def step(self) -> bool:
        """Have the next errand done, if there is one; return whether there was."""
        errand = next((e for e in (source() for source in self._sources) if e is not None), None)
        if errand is None:
            return False
        try:
            answer = self._ask(errand.order())
        except OrganNetError as error:
            answer = JobResult(found={}, trouble=str(error))
        except (OSError, ValueError) as error:
            self._end_child()
            if self._loop.is_over:
                return False
            answer = JobResult(found={}, trouble=f"its process ended: {error}")
        if answer.trouble:
            logger.warning("%s: %s", errand.about, answer.trouble)
        errand.keep(answer)
        return True

    def _ask(self, order: Mapping[str, Any]) -> JobResult:
        """Return the process's answer.

        Raises:
            OSError: If it has ended, or does not answer.
        """
        child = self._child_process()
        if child.stdin is None or child.stdout is None:
            raise OSError("no pipes")
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
        deadline = time.monotonic() + LIMIT_S
        while not select.select([child.stdout], [], [], _LOOK_S)[0]:
            if self._loop.is_over:
                raise OSError("the server ends")
            if time.monotonic() > deadline:
                raise OSError(f"no answer within {LIMIT_S:.0f} s")
        line = child.stdout.readline()
        if not line:
            raise OSError(f"exit code {child.wait(10)}; its log is {self._folder / LOG}")
        self._used = time.monotonic()
        return JobResult(**json.loads(line))

    def _child_process(self) -> "subprocess.Popen[bytes]":
        if self._child is None or self._child.poll() is not None:
            self._end_child()
            with (self._folder / LOG).open("ab") as log:
                self._child = start_child(
                    "lib.activelearning.scoring_process", self._flags, threads=fewer_threads(),
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )  # fmt: skip
        return self._child

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait(10)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
