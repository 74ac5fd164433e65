"""The folders of a campaign, and the processes that work in them."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from lib.storage.database import FILE, FOLDER
from tests.server.running import APP, TINY
from tests.waiting import LIMIT_S

START_LIMIT_S = ANSWER_LIMIT_S = LIMIT_S
LOOK_S = 0.1
ALWAYS_TRAINING = {
    "min_new_labels": "1", "quiet_s": "0", "retry_after_s": "0", "retrain_epochs": "4",
    "min_first_dsc": "0", "promotion_margin": "1", "max_organ_drop": "1", "doubted_may_judge": "true",
    "device": "cpu",
}  # fmt: skip
"""Settings with which every label starts a training, and nearly every candidate is promoted."""


class ChaosError(Exception):
    """A violation that ends the campaign."""


@dataclass(slots=True)
class Stage:
    """One studies folder, one model folder, and the server over them.

    Attributes:
        folder: The folder of all files of a campaign.
        process: The server; None while there is none.
        url: URL of the running server, or of the last one.
        starts_s: Seconds that each start took, until the first answer.
        is_serving: Whether a server is running and has answered.
    """

    folder: Path
    process: psutil.Process | None = None
    url: str = ""
    starts_s: list[float] = field(default_factory=list)
    is_serving: bool = False

    def __post_init__(self) -> None:
        for folder in (self.studies, self.models, self.scratch, self.folder / "sessions"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(TINY.as_dict()), encoding="utf-8")

    @property
    def studies(self) -> Path:
        """The studies folder."""
        return self.folder / "studies"

    @property
    def models(self) -> Path:
        """The registry's folder."""
        return self.folder / "models"

    @property
    def state(self) -> Path:
        """The folder of the database, the label versions and the training runs."""
        return self.studies / FOLDER

    @property
    def scratch(self) -> Path:
        """The server's folder for temporary files."""
        return self.folder / "scratch"

    @property
    def log(self) -> Path:
        """The output of all servers."""
        return self.folder / "server.log"

    def launch(self) -> None:
        """Start a server without waiting for it."""
        conf = {
            **ALWAYS_TRAINING,
            "model_dir": str(self.models),
            "starter_dir": str(self.folder / "none"),
            "recipe": str(self.folder / "tiny.yaml"),
        }
        port = _free_port()
        arguments = ["start_server", "--app", str(APP), "--studies", str(self.studies),
                     "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
        for key, value in conf.items():
            arguments += ["--conf", key, value]
        self.url = f"http://127.0.0.1:{port}"
        # Not with MONAI Label's start script: the process that is killed must be the server itself.
        command = [sys.executable, "-m", "monailabel.main", *arguments]
        with self.log.open("ab") as output:
            self.process = psutil.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(),
            )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.scratch), "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(APP),
                "MONAI_LABEL_SESSION_PATH": str(self.folder / "sessions")}  # fmt: skip

    def start(self) -> None:
        """Start a server, and return when it answers.

        Raises:
            ChaosError: If it ends, or does not answer in time.
        """
        began = time.monotonic()
        self.launch()
        while time.monotonic() - began < START_LIMIT_S:
            with suppress(requests.ConnectionError):
                if requests.get(f"{self.url}/info/", timeout=ANSWER_LIMIT_S).status_code == 200:
                    self.starts_s.append(time.monotonic() - began)
                    self.is_serving = True
                    return
            self.require_alive()
            time.sleep(LOOK_S)
        raise ChaosError(f"the server did not answer within {START_LIMIT_S:g} s")

    def require_alive(self) -> None:
        """Check that the server is running.

        Raises:
            ChaosError: If it has ended by itself.
        """
        with suppress(psutil.NoSuchProcess):
            if self.process is not None and self.process.status() != psutil.STATUS_ZOMBIE:
                return
        raise ChaosError("the server ended by itself")

    def kill_server(self) -> None:
        """Kill the server where one runs."""
        process, self.process, self.is_serving = self.process, None, False
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
            process.wait(LIMIT_S)

    def stop_server(self) -> None:
        """Stop the server with SIGINT, as a service manager does.

        Raises:
            ChaosError: If it does not stop in time.
        """
        process, self.process, self.is_serving = self.process, None, False
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(LIMIT_S)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(LIMIT_S)
            raise ChaosError("the server did not stop after SIGINT") from None

    def close(self) -> None:
        """Kill all processes of the campaign."""
        self.kill_server()
        self.kill_trainers()

    def trainers(self) -> list[psutil.Process]:
        """Return the processes that train for these studies, including those still starting."""
        return self._running("lib.retrain.training_process")

    def scorers(self) -> list[psutil.Process]:
        """Return the processes that score images for these studies, including those still starting."""
        return self._running("lib.activelearning.scoring_process")

    def _running(self, module: str) -> list[psutil.Process]:
        """Return the processes that run `module` for these studies.

        A process that starts a program (git, for a training's record) appears twice with the same command line
        until that program has begun: the younger of the two is not counted.
        """
        candidates: dict[int, psutil.Process] = {}
        parents = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                line = process.cmdline()
                if module in line and any(str(self.state) in word for word in line):
                    candidates[process.pid] = process
                    parents[process.pid] = process.ppid()
        return [process for pid, process in candidates.items() if parents[pid] not in candidates]

    def kill_trainers(self) -> list[int]:
        """Kill every process that trains, and return their ids."""
        killed = []
        for process in self.trainers():
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)
        return killed

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Return the rows of a query, read with sqlite3; none if there is no database yet."""
        path = self.state / FILE
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(query, parameters).fetchall()

    def active_run(self) -> Mapping[str, Any] | None:
        """Return the active run, if there is one."""
        query = "SELECT id, state, pid FROM runs WHERE state IN ('queued', 'running', 'judging')"
        return next((dict(row) for row in self.rows(query)), None)


def until(holds: Callable[[], bool], limit_s: float, *, every_s: float = LOOK_S) -> bool:
    """Return whether a condition became true within `limit_s`."""
    limit = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(every_s)
    return True


def files_below(*roots: Path) -> Iterator[Path]:
    """Yield every file and folder, including hidden ones."""
    for root in roots:
        for folder, names, files in os.walk(root):
            yield from (Path(folder) / name for name in (*names, *files))


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
