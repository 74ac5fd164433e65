"""Child processes end with their parent, also during their imports."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from lib.jobs.child_process import PARENT_GONE
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
PARENT = """
import os, subprocess, sys
command = [sys.executable, "-m", "lib.jobs.child_process", "--parent", str(os.getpid())]
child = subprocess.Popen([*command, "tests.retrain.slow_to_import"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_ends_with_its_parent_during_imports() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    # Ctrl-C in the terminal reaches both; it is for the parent.
    child.send_signal(signal.SIGINT)
    assert psutil.wait_procs([child], timeout=0.5)[1]
    parent.kill()
    parent.communicate()
    gone, _ = psutil.wait_procs([child], timeout=LIMIT_S)
    assert gone


def test_a_child_whose_parent_has_ended_runs_nothing() -> None:
    command = [
        sys.executable,
        "-m",
        "lib.jobs.child_process",
        "--parent",
        "1",
        "tests.retrain.no_module",
    ]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == PARENT_GONE
