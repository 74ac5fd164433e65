"""Child processes that end with the process that started them, from their first moment on.

    python -m lib.jobs.child_process --parent PID MODULE [ARGUMENT ...]

This module imports the standard library only. The imports of `MODULE` may take many seconds, and a server that
is killed during them must not leave an unsupervised training behind.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

PARENT_GONE = 5
"""Exit code of a child whose parent ended before the child could ask to be ended with it."""
_APP_DIR = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
"""Option number of prctl(2)."""


def start_child(
    module: str, arguments: Sequence[str], *, threads: int, log: Path, has_pipes: bool
) -> "subprocess.Popen[bytes]":
    """Return a new process that ends with the calling process.

    The kernel kills the child when the *thread* that started it ends, so that thread must live as long as the
    server.

    Args:
        module: Run as `__main__`.
        arguments: Its command line.
        threads: Number of OpenMP threads.
        log: File that its standard error is appended to; standard output too, unless `has_pipes`.
        has_pipes: Whether standard input and output are pipes to this server.
    """
    environment = {**os.environ, "PYTHONPATH": str(_APP_DIR), "OMP_NUM_THREADS": str(threads),
                   "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
    with log.open("ab") as file:
        return subprocess.Popen(
            [*_command(module, parent=os.getpid()), *arguments],
            stdin=subprocess.PIPE if has_pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if has_pipes else file,
            stderr=file,
            cwd=_APP_DIR,
            env=environment,
        )


def replace_process(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this child process by a fresh one that runs `module`, with the same process id and parent."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*_command(module, parent=os.getppid()), *arguments])


def _command(module: str, *, parent: int) -> list[str]:
    return [sys.executable, "-m", "lib.jobs.child_process", "--parent", str(parent), module]


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however it ends (defect 10); Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Run the module that the command line names as `__main__`."""
    _, _, parent, module, *arguments = sys.argv
    # Ctrl-C is for the parent, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if os.getppid() != int(parent):
        # The parent ended before `end_with_parent` took effect.
        sys.exit(PARENT_GONE)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
