"""Start a program behind the server."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

from lib.config import APP_DIR


def start_child(
    module: str,
    arguments: Sequence[str],
    *,
    threads: int,
    stdin: int | IO[Any],
    stdout: int | IO[Any],
    stderr: int | IO[Any],
) -> "subprocess.Popen[bytes]":
    """Return a new process that runs `module` and ends with this one (`lib.jobs.child_process`).

    It is told to die with the thread that starts it, so that thread must live as long as the server.
    """
    command = [sys.executable, "-m", "lib.jobs.child_process", "--parent", str(os.getpid()), module]
    environment = {**os.environ, "PYTHONPATH": str(APP_DIR), "OMP_NUM_THREADS": str(threads),
                   "OMP_WAIT_POLICY": "PASSIVE"}  # fmt: skip
    return subprocess.Popen(
        [*command, *arguments], stdin=stdin, stdout=stdout, stderr=stderr, cwd=APP_DIR, env=environment
    )  # fmt: skip
