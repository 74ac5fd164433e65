"""A program that ends with the process that started it, from its first moment on.

    python -m lib.jobs.child_process --parent PID MODULE [ARGUMENT ...]

It imports nothing that takes time: what `MODULE` imports may take many seconds, and a server that is killed in
them must not leave a training behind that nobody watches.
"""

import ctypes
import os
import runpy
import signal
import sys

PARENT_GONE = 5
"""Exit code."""
_PR_SET_PDEATHSIG = 1
"""prctl(2)."""


def end_with_parent() -> None:
    """Let this process be killed when its parent ends, however it ends (defect 10); Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Run the module that the command line names as the program it is."""
    _, _, parent, module, *arguments = sys.argv
    # Ctrl-C is for the parent, which ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if os.getppid() != int(parent):
        # It ended before it could be asked for.
        sys.exit(PARENT_GONE)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
