import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lib.config import APP_DIR
from lib.jobs import priority
from lib.jobs.priority import ServingPriority
from lib.storage.process_locks import ProcessLock
from tests.waiting import LIMIT_S

CONTOURING = """
import sys, time
from pathlib import Path
from lib.jobs.priority import ServingPriority
with ServingPriority(Path(sys.argv[1])).inference():
    print("contouring", flush=True)
    time.sleep(600)
"""


def test_a_training_waits_until_no_inference_runs(tmp_path: Path) -> None:
    server, training = ServingPriority(tmp_path), ServingPriority(tmp_path)
    assert training.give_way() < priority.LONGEST_WAIT_S / 2
    waited = []
    with server.inference(), server.inference():
        thread = threading.Thread(target=lambda: waited.append(training.give_way()))
        thread.start()
        time.sleep(0.3)
        assert not waited
    thread.join(LIMIT_S)
    assert waited[0] >= 0.3


def test_the_wait_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority, "LONGEST_WAIT_S", 0.2)
    with ServingPriority(tmp_path).inference():
        assert ServingPriority(tmp_path).give_way() >= 0.2


def test_a_killed_server_does_not_block_background_work(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", CONTOURING, str(tmp_path)], stdout=subprocess.PIPE, cwd=APP_DIR
    )
    assert server.stdout is not None
    server.stdout.readline()
    assert not ProcessLock(tmp_path / priority.FILE).is_free()
    server.kill()
    server.wait()
    server.stdout.close()
    assert ServingPriority(tmp_path).give_way() < priority.LONGEST_WAIT_S / 2


def test_one_process_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    first, second = ProcessLock(tmp_path / "lock"), ProcessLock(tmp_path / "lock")
    assert first.try_acquire()
    assert first.try_acquire()
    assert not second.try_acquire()
    assert not second.is_free()
    first.release()
    assert second.is_free()
    assert second.try_acquire()
