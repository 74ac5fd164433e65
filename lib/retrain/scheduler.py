"""The thread that lets trainings begin, and sees to it that one, and only one, is carried to its end.

Everything it knows is in the database: a server that starts finds the run that was cut short, and lets it go
on. Of several servers over one studies folder one schedules; when it ends, another takes over.
"""

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

from lib.config import RetrainConfig
from lib.jobs.child_process import PARENT_GONE
from lib.jobs.low_priority import fewer_threads
from lib.jobs.periodic_task import PeriodicTask
from lib.jobs.start_child import start_child
from lib.retrain.run_records import ACTIVE, Runs, RunState
from lib.retrain.training_process import BUSY, CLAIM, RUNS, STOPPED, RunDirectory
from lib.retrain.training_set import Planner
from lib.retrain.trigger import TriggerDecision, decide
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import Run, now

logger = logging.getLogger(__name__)

SCHEDULING = "scheduling.lock"
TICK_S = 1.0
LOOK_EVERY = 5
"""Ticks between two looks at the labels, where nobody says that there is a new one."""
MAX_ATTEMPTS = 3
"""A run whose process dies so often without an epoch in between has failed."""


class Scheduler:
    """Starts, watches and ends the training process.

    Args:
        place: Where trainings work.
        planner: Knows the labels.
        runs: Knows the trainings.
        settings: Returns the rules as they are now.
        queue: Adds a run of what is labelled now, for the reason given.
        after_crash: Called when a training's process died.
        settle: Called before a run is given up; returns how its candidate was decided about, if it was.
    """

    def __init__(
        self,
        *,
        place: RunDirectory,
        planner: Planner,
        runs: Runs,
        settings: Callable[[], RetrainConfig],
        queue: Callable[[str], Run],
        after_crash: Callable[[], object],
        settle: Callable[[Run], tuple[RunState, str] | None],
    ) -> None:
        self._place = place
        self._planner = planner
        self._runs = runs
        self._settings = settings
        self._queue = queue
        self._after_crash = after_crash
        self._settle = settle
        self._claim = ProcessLock(place.state / SCHEDULING)
        self._training = ProcessLock(place.state / CLAIM)
        self._loop = PeriodicTask(
            "scheduler", self.tick, every_s=TICK_S, trouble="the scheduler met an error"
        )
        self._child: subprocess.Popen[bytes] | None = None
        self._child_run = 0
        self._child_began = (0, 0)
        self._ticks = 0
        self._is_tidy = False

    def start(self) -> None:
        """Begin to look."""
        self._loop.start()

    def stop(self) -> None:
        """End, and the training with it; the next server lets that go on."""
        self._loop.stop()
        self.kill_child()
        self._claim.release()

    def wake(self) -> None:
        """Look now: something has changed."""
        self._ticks = 0
        self._loop.wake()

    def kill_child(self) -> None:
        """End the training's process, if it is ours."""
        child = self._child
        if child is not None and child.poll() is None:
            child.kill()
            child.wait(10)

    def tick(self) -> None:
        """Do what is to be done now."""
        if not self._claim.try_acquire():
            return
        if not self._is_tidy:
            self._is_tidy = True
            self._tidy()
        self._reap()
        if self._child is not None:
            return
        active = self._runs.active()
        if active is None and self._ticks % LOOK_EVERY == 0:
            decision = self.decision()
            if decision.start:
                active = self._queue(decision.reason)
        self._ticks += 1
        if active is not None and self._training.is_free():
            self._begin(active)

    def decision(self) -> TriggerDecision:
        """Return whether a training starts now, and why or why not."""
        situation = self._planner.situation(self._planner.cases())
        return decide(self._settings(), situation, now())

    def _begin(self, run: Run) -> None:
        folder = self._place.run_dir(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        threads = fewer_threads(int(run.request["settings"]["retrain_threads"]))
        arguments = ["--place", self._place.to_json(), "--run", str(run.id)]
        with log_path(folder).open("ab") as log:
            self._child = start_child(
                "lib.retrain.training_process", arguments, threads=threads, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        self._child_run = run.id
        self._child_began = (_epoch(run), _killed_for_memory())
        logger.info("training %d starts: %s", run.id, run.why)

    def _reap(self) -> None:
        """Look whether the training's process has ended, and how."""
        child = self._child
        if child is None or child.poll() is None:
            return
        self._child = None
        self._ticks = 0
        run = self._runs.get(self._child_run)
        logger.info(
            "training %d: its process ended with code %d, %s", run.id, child.returncode, run.state
        )
        if run.state in ACTIVE and child.returncode not in (BUSY, STOPPED, PARENT_GONE):
            self._after_crash()
            self._count(run, child.returncode)
        self._tidy()

    def _tidy(self) -> None:
        """Remove the checkpoints of runs that will not go on; their logs and their records stay.

        Those of earlier servers too: one that was killed cleared nothing.
        """
        last = self._runs.last()
        kept = self._place.run_dir(last.id) if last is not None and _may_go_on(last) else None
        for path in (self._place.state / RUNS).glob("run-*/checkpoint*"):
            if path.parent != kept:
                path.unlink(missing_ok=True)

    def _count(self, run: Run, code: int) -> None:
        epoch_then, killed_then = self._child_began
        attempts = 1 if _epoch(run) > epoch_then else run.attempts + 1
        request = dict(run.request)
        note = f"its process ended with code {code}"
        if code == -9 and _killed_for_memory() > killed_then:
            request["shrinks"] = request.get("shrinks", 0) + 1
            note += ": the machine had no memory left; the next try takes less"
        if attempts < MAX_ATTEMPTS:
            self._runs.change(
                run.id, attempts=attempts, request=request, note=f"{note}; it goes on"
            )
            return
        last = " ".join(tail(log_path(self._place.run_dir(run.id)), 1))
        text = f"{note}, {attempts} times without an epoch in between; its last words: {last}"
        # It may have been killed between the decision about its candidate and its end.
        state, outcome = self._settle(run) or (RunState.FAILED, text)
        self._runs.change(run.id, state=state, attempts=attempts, outcome=outcome)


def log_path(run_dir: Path) -> Path:
    """Return where a run's process writes what it has to say."""
    return run_dir / "log.txt"


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log; none where there is no log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 400 * lines))
            return log.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


def _may_go_on(run: Run) -> bool:
    """Return whether the newest run needs its checkpoint; one that was stopped does."""
    return run.state in ACTIVE or run.state == RunState.STOPPED


def _epoch(run: Run) -> int:
    return int(run.progress.get("epoch", 0))


def _killed_for_memory() -> int:
    """Return how many processes the kernel has ended since it started, for want of memory."""
    try:
        counters = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(c.split()[1]) for c in counters if c.startswith("oom_kill ")), 0)
