"""The rounds of a campaign: each kills a process and then runs all checks."""

import random
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.checks import Checks, leftovers_of
from tests.chaos.load import Load
from tests.chaos.moments import WEIGHTS, Kill, wait_for
from tests.chaos.stage import ChaosError, Stage, until
from tests.waiting import LIMIT_S

ORPHAN_LIMIT_S = 300.0
IDLE_LIMIT_S = 300.0
"""Seconds without a trainer process after which an active run counts as forgotten, while a server runs."""
STARTUP_SHARE = 0.2
"""Share of the restarts in which the starting server is killed once more."""
BY_HAND_SHARE = 0.3
"""Share of the restarts before which a label file is copied into the studies folder by hand."""
END_LIMIT_S = LIMIT_S


def say(text: str) -> None:
    """Print a line and flush it at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass(slots=True)
class Watcher:
    """A thread that checks all the time which training processes run.

    Attributes:
        wrong: Violations observed so far.
        most: The largest number of processes that trained at the same time.
    """

    stage: Stage
    wrong: list[str] = field(default_factory=list)
    most: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _idle_since: float | None = None

    def start(self) -> None:
        """Start watching."""
        threading.Thread(target=self._live, daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._over.set()

    def _live(self) -> None:
        while not self._over.wait(0.25):
            trainers = self.stage.trainers()
            trainer_count = len(trainers)
            self.most = max(self.most, trainer_count)
            if trainer_count > 1:
                self.wrong.append(f"{trainer_count} trainings run at once: {trainers}")
            if len(scorers := self.stage.scorers()) > 1:
                self.wrong.append(f"{len(scorers)} processes score at once: {scorers}")
            self._look_for_a_forgotten_run(trainer_count)

    def _look_for_a_forgotten_run(self, trainers: int) -> None:
        # Without a running server, no trainer is expected.
        if trainers or not self.stage.is_serving or self.stage.active_run() is None:
            self._idle_since = None
            return
        self._idle_since = self._idle_since or time.monotonic()
        if time.monotonic() - self._idle_since > IDLE_LIMIT_S:
            self.wrong.append(f"no process works on {self.stage.active_run()}")
            self._idle_since = None


@dataclass(slots=True)
class Campaign:
    """All rounds over one studies folder.

    Attributes:
        kills: Number of kills of each kind.
        missed: Number of kills whose moment did not come in time; they were done anyway.
        wrong: Violations, each with its round.
        is_interrupted: Whether the campaign was ended with Ctrl-C; the rounds that passed until then count.
    """

    folder: Path
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    clean: int = 0
    wrong: list[str] = field(default_factory=list)
    is_interrupted: bool = False
    _round: int = 0

    def run(self, rounds: int) -> bool:
        """Return whether all rounds and the final checks passed."""
        stage = Stage(self.folder)
        load, checks, watcher = Load(stage, self.seed), Checks(stage), Watcher(stage)
        chance = random.Random(self.seed)  # noqa: S311 - no secret
        began = time.monotonic()
        try:
            stage.start()
            watcher.start()
            for number in range(1, rounds + 1):
                self._round = number
                self._play(stage, load, checks, chance)
                self._blame([*load.wrong, *watcher.wrong])
                if self.wrong:
                    break
                self.clean += 1
            else:
                self._end(stage, load, checks)
                self._blame([*load.wrong, *watcher.wrong])
        except ChaosError as error:
            self._blame([str(error)])
        except KeyboardInterrupt:
            say(f"interrupted in round {self._round}")
            self.is_interrupted = True
        finally:
            load.end()
            watcher.stop()
            stage.close()
        self._report(stage, load, watcher, time.monotonic() - began)
        return not self.wrong and not self.is_interrupted

    def _blame(self, wrong: list[str]) -> None:
        self.wrong += [f"round {self._round}: {one}" for one in dict.fromkeys(wrong)]

    def _play(self, stage: Stage, load: Load, checks: Checks, chance: random.Random) -> None:
        began = time.monotonic()
        load.resume()
        kind = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        is_met = wait_for(kind, stage, chance)
        run = stage.active_run()
        self.kills[kind.value] += 1
        self.missed += not is_met
        left: list[Path] = []
        if kind.spares_the_server:
            killed = stage.kill_trainers()
            self._require_another_trainer(stage, killed)
            load.pause()
        else:
            if kind is not Kill.SERVER:
                stage.kill_trainers()
            stage.kill_server()
            load.pause()
            self._require_no_trainer(stage)
            left = self._restart(stage, load, chance)
        self._blame(checks.all(load.cases, left))
        at = f"run {run['id']} {run['state']}" if run else "no run"
        say(f"round {self._round}: {kind.value}{'' if is_met else ' (its moment did not come)'}, at "
            f"{at}; {time.monotonic() - began:.1f} s")  # fmt: skip

    def _restart(self, stage: Stage, load: Load, chance: random.Random) -> list[Path]:
        if chance.random() < BY_HAND_SHARE:
            chance.choice(load.submitters).copy_in_any()
        if chance.random() < STARTUP_SHARE:
            stage.launch()
            time.sleep(chance.uniform(0.2, 1.1) * statistics.median(stage.starts_s))
            stage.require_alive()
            stage.kill_server()
            self.kills["the server, as it starts"] += 1
            self._require_no_trainer(stage)
        left = leftovers_of(stage)
        stage.start()
        return left

    def _require_no_trainer(self, stage: Stage) -> None:
        for what, still in (("a training", stage.trainers), ("scoring", stage.scorers)):
            if not until(lambda still=still: not still(), ORPHAN_LIMIT_S):  # type: ignore[misc]
                self._blame([f"{what} outlives its server by {ORPHAN_LIMIT_S:g} s"])
                until(lambda still=still: not still(), 60)  # type: ignore[misc]

    def _require_another_trainer(self, stage: Stage, killed: list[int]) -> None:
        """Wait for the server to let the run go on, by itself."""

        def goes_on() -> bool:
            return stage.active_run() is None or any(
                process.pid not in killed for process in stage.trainers()
            )

        if not until(goes_on, IDLE_LIMIT_S):
            self._blame(["the server did not start the training again"])

    def _end(self, stage: Stage, load: Load, checks: Checks) -> None:
        """Let everything come to rest, stop the server as one should, and check once more."""
        if not until(lambda: stage.active_run() is None, END_LIMIT_S, every_s=1):
            self._blame([f"the last training did not end within {END_LIMIT_S:g} s"])
        stage.stop_server()
        self._require_no_trainer(stage)
        left = leftovers_of(stage)
        stage.start()
        self._blame(checks.all(load.cases, left))
        waiting = stage.rows(
            "SELECT m.version FROM models m LEFT JOIN runs r ON m.run_id = r.id WHERE "
            "m.decision = 'waiting' AND coalesce(r.state, '') IN ('promoted', 'rejected', '')"
        )
        if waiting:
            self._blame([f"{len(waiting)} candidates still wait for a decision"])
        stage.stop_server()
        self._require_no_trainer(stage)

    def _report(self, stage: Stage, load: Load, watcher: Watcher, seconds: float) -> None:
        runs = Counter(row["state"] for row in stage.rows("SELECT state FROM runs"))
        versions = len(stage.rows("SELECT 1 FROM label_versions"))
        promotions = len(stage.rows("SELECT 1 FROM promotions"))
        log = stage.log.read_text(errors="replace") if stage.log.exists() else ""
        lines = [
            ("rounds clean", self.clean),
            *((f"killed: {kind}", count) for kind, count in sorted(self.kills.items())),
            ("moments that did not come", self.missed),
            *((f"answered: {what}", count) for what, count in sorted(load.done.items())),
            ("label versions", versions),
            *((f"trainings {state}", count) for state, count in sorted(runs.items())),
            ("promotions", promotions),
            ("most trainings at once", watcher.most),
            ("tracebacks in the server's log", log.count("Traceback (most recent call last)")),
            ("starts of the server", len(stage.starts_s)),
            ("seconds of a start, median", f"{statistics.median(stage.starts_s or [0]):.1f}"),
            ("seconds in all", f"{seconds:.0f}"),
        ]
        width = max(len(name) for name, _ in lines)
        for name, value in lines:
            say(f"{name:<{width}}  {value}")
        for one in self.wrong:
            say(f"WRONG, {one}")
