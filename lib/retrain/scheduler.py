"""Start and supervision of training runs, one at a time, each until its end.

The state is in the database: a server that starts continues the run that was active before.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from lib.config import RetrainConfig
from lib.jobs.child_process import PARENT_GONE, start_child
from lib.jobs.priority import training_threads
from lib.jobs.supervisor import Supervisor, tail
from lib.retrain.runs import ACTIVE, RUNS_FOLDER, TRAINING_LOCK, ExitCode, RunState, TrainingFolders
from lib.retrain.training_set import TrainingSetPlanner
from lib.retrain.trigger import TriggerDecision, decide
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import Run, now

logger = logging.getLogger(__name__)

LOCK = "scheduling.lock"
TICK_S = 1.0
"""Longest time between two ticks, in s."""
TICKS_PER_CHECK = 5
"""Number of ticks between two checks for new labels, if no new label is announced."""
MAX_ATTEMPTS = 3
"""Number of crashes, without a finished epoch between them, after which a run has failed."""


class Scheduler(Supervisor):
    """Starts, watches and ends the training process.

    Args:
        folders: Folders of the trainings.
        planner: Plans the training set.
        settings: Returns the current settings.
        queue: Queues a run with the present labels, for the given reason.
        after_crash: Called when a training process has died.
        resolve: Called before a run is given up; returns its final state and the reason if there is a
            decision about its candidate model, else None.
    """

    def __init__(
        self,
        *,
        folders: TrainingFolders,
        planner: TrainingSetPlanner,
        settings: Callable[[], RetrainConfig],
        queue: Callable[[str], Run],
        after_crash: Callable[[], object],
        resolve: Callable[[Run], tuple[RunState, str] | None],
    ) -> None:
        super().__init__(
            "scheduler", folders.state / LOCK, every_s=TICK_S, error_message="the scheduler failed"
        )
        self._folders = folders
        self._planner = planner
        self._runs = planner.runs
        self._settings = settings
        self._queue = queue
        self._after_crash = after_crash
        self._resolve = resolve
        self._training_lock = ProcessLock(folders.state / TRAINING_LOCK)
        self._is_watching = False
        self._run_id = 0
        self._epoch_at_start = 0
        self._memory_kills_at_start = _memory_kills()
        self._ticks = 0
        self._is_first_tick = True

    def wake(self) -> None:
        """Check for new labels now."""
        self._ticks = 0
        super().wake()

    def tick(self) -> bool:
        """Supervise the training process, or start one if it is due; never return True (call again at once)."""
        if not self._lock.try_acquire():
            return False
        if self._is_first_tick:
            self._is_first_tick = False
            self._remove_checkpoints()
        self._watch()
        if self._is_watching:
            return False
        active = self._runs.active()
        if active is None and self._ticks % TICKS_PER_CHECK == 0:
            decision = self.decision()
            if decision.start:
                active = self._queue(decision.reason)
        self._ticks += 1
        if active is not None and self._training_lock.is_free():
            self._start_training(active)
        return False

    def decision(self) -> TriggerDecision:
        """Return whether a training starts now, and the reason."""
        state = self._planner.trigger_state(self._planner.cases())
        return decide(self._settings(), state, now())

    def _start_training(self, run: Run) -> None:
        self._folders.run_dir(run.id).mkdir(parents=True, exist_ok=True)
        self._child = start_child(
            "lib.retrain.training_process",
            ["--folders", self._folders.to_json(), "--run", str(run.id)],
            threads=training_threads(int(run.request["settings"]["retrain_threads"])),
            log=self._folders.log_path(run.id),
            has_pipes=False,
        )
        self._is_watching = True
        self._run_id = run.id
        self._epoch_at_start, self._memory_kills_at_start = _epoch(run), _memory_kills()
        logger.info("training %d starts: %s", run.id, run.why)

    def _watch(self) -> None:
        """Handle the end of the training process, if it has ended."""
        child = self._child
        if not self._is_watching or child is None or child.poll() is None:
            return
        self._is_watching = False
        self._ticks = 0
        run = self._runs.get(self._run_id)
        logger.info(
            "training %d: its process ended with code %d, %s", run.id, child.returncode, run.state
        )
        if run.state in ACTIVE and child.returncode not in (
            ExitCode.BUSY,
            ExitCode.STOPPED,
            PARENT_GONE,
        ):
            self._after_crash()
            self._record_crash(run, child.returncode)
        self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        """Remove the checkpoints of runs that will not be continued; their logs and their rows stay.

        This includes checkpoints of earlier servers, which may have been killed before they removed them.
        """
        last = self._runs.last()
        may_continue = last is not None and last.state in (*ACTIVE, RunState.STOPPED)
        needed = self._folders.run_dir(last.id) if last is not None and may_continue else None
        for path in (self._folders.state / RUNS_FOLDER).glob("run-*/checkpoint*"):
            if path.parent != needed:
                path.unlink(missing_ok=True)

    def _record_crash(self, run: Run, code: int) -> None:
        """Record that a run's process died: the run is continued, or fails after `MAX_ATTEMPTS`."""
        attempts = 1 if _epoch(run) > self._epoch_at_start else run.attempts + 1
        request = dict(run.request)
        note = f"its process ended with code {code}"
        if code == -9 and _memory_kills() > self._memory_kills_at_start:
            request["shrinks"] = request.get("shrinks", 0) + 1
            note += ": the machine ran out of memory; the next attempt uses less"
        if attempts < MAX_ATTEMPTS:
            self._runs.update(
                run.id, attempts=attempts, request=request, note=f"{note}; it is continued"
            )
            return
        last_line = " ".join(tail(self._folders.log_path(run.id), 1))
        text = f"{note}, {attempts} times without a finished epoch in between; last log line: {last_line}"
        # The process may have died after the decision about its model, before it recorded the end of the run.
        state, outcome = self._resolve(run) or (RunState.FAILED, text)
        self._runs.update(run.id, state=state, attempts=attempts, outcome=outcome)


def _epoch(run: Run) -> int:
    return int(run.progress.get("epoch", 0))


def _memory_kills() -> int:
    """Return the number of processes that the kernel has killed for lack of memory since the boot."""
    try:
        counters = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(c.split()[1]) for c in counters if c.startswith("oom_kill ")), 0)
