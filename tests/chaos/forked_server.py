"""Servers that start fast: copies of a process that has loaded the libraries already (fork(2)).

    python -m tests.chaos.forked_server

Most of a server's start is importing what it stands on. What is killed is the same program in a process of its
own; only where its libraries come from differs. Each line on the input, JSON with `arguments`, `folder` and
`log`, is answered with the id of a new process.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import psutil

LOADED = ("lib.app", "monailabel.main", "monailabel.interfaces.utils.app", "uvicorn", "multipart")
"""Not `monailabel.app`, by which a process knows that it is a server."""


class ForkedServerPool:
    """A process that makes servers; it ends with the one that made it, or when it is closed.

    Args:
        environment: Of all its servers.
        folder: From which it runs.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.forked_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
            cwd=folder,
        )

    def start(self, **wishes: Any) -> psutil.Process:
        """Return a new process of `monailabel`; `wishes` are the keys of a line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wishes) + "\n")
        self._process.stdin.flush()
        return psutil.Process(int(self._process.stdout.readline()))

    def close(self) -> None:
        """End it; its servers go on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _become_server(wish: dict[str, Any], answers: int) -> NoReturn:
    """Be the process that the command line would have started."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(wish["folder"])
    log = os.open(wish["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    os.close(answers)
    sys.argv = ["monailabel", *wish["arguments"]]
    runpy.run_module("monailabel.main", run_name="__main__", alter_sys=True)
    sys.exit(0)


def main() -> None:
    """Load the libraries, and make servers until the input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in LOADED:
        importlib.import_module(name)
    # Nobody asks how they ended: the kernel forgets them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        wish = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_server(wish, answers)
        os.write(answers, f"{pid}\n".encode())


if __name__ == "__main__":
    main()
