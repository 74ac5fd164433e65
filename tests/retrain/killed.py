"""A program that is killed: each line on its input is one promotion, done by a process that does not live long.

`FOLDER point VERSION STEP` is killed (SIGKILL, by itself) at that step of a promotion, `FOLDER after VERSION
SECONDS` at that moment. Steps: `decided`, `served`, `never`. It answers each line with the status that its
process ended with.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from lib.models.model_history import ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Registry
from lib.storage.database import Database


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Doomed(Registry):
    """A registry whose user dies just before or just after a publication."""

    step = "never"

    def publish(self, version: str, *, reason: str) -> None:
        if self.step == "decided":
            kill()
        super().publish(version, reason=reason)
        if self.step == "served":
            kill()


def live(folder: Path, kind: str, version: str, when: str) -> None:
    registry = Doomed(folder)
    if kind == "point":
        registry.step = when
    else:
        timer = threading.Timer(float(when), kill)
        timer.daemon = True
        timer.start()
    database = Database(folder / "state.sqlite")
    promoter = Promoter(registry, ModelHistory(database))
    promoter.promote(version, reason=f"{version} is better", by="referee")
    database.close()
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        folder, kind, version, when = line.split()
        child = os.fork()
        if child == 0:
            live(Path(folder), kind, version, when)
        status = 0
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            time.sleep(0.002)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
