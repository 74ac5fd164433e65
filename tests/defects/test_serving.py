"""A server that stays responsive: rows 9, 13, 14 and 17."""

import threading
import time
from contextlib import suppress

import psutil
import pytest

from tests.defects import scans
from tests.defects.client import as_file, infer, put_label, put_scan
from tests.defects.targets import Target
from tests.server.running import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.server

WATCHED_S = 3.0
"""Seconds in which MONAI Label would have started a process, and a busy process used processor time."""


def test_row_09_other_requests_are_answered_while_a_scan_is_contoured(
    target: Target, server: Server
) -> None:
    put_scan(server, "small", ct=scans.scan(0))
    put_scan(server, "large", ct=scans.scan(0, (70, 64, 40)))
    label = as_file(scans.label(0))
    answers = []
    request = threading.Thread(
        target=lambda: answers.append(infer(server, target.model, "large", overlap=0.8))
    )
    request.start()
    rounds = 0
    while request.is_alive():
        assert server.ask("GET", "/info/").status_code == 200
        assert put_label(server, "small", label).status_code == 200
        rounds += request.is_alive()
    assert answers[0].status_code == 200, answers[0].text
    # A server that contours on the thread that answers gets through at most one round, before it begins.
    assert rounds >= 3


@pytest.mark.parametrize(
    "left",
    ['{"epoch": 3, "best_metric": NaN}', '{"epoch": 3, "best_m', ""],
    ids=["nan", "half", "empty"],
)
def test_row_13_server_answers_despite_damaged_statistics(
    target: Target, server: Server, left: str
) -> None:
    put_scan(server, "one", "two", "three", ct=scans.scan(0))
    statistics = server.models / "train_stats.json"
    statistics.write_text(left)
    try:
        statuses = {
            "info": server.ask("GET", "/info/").status_code,
            "next sample": server.ask("POST", "/activelearning/random", json={}).status_code,
            "infer": infer(server, target.model, "one").status_code,
        }
    finally:
        statistics.unlink()
    assert statuses == dict.fromkeys(statuses, 200)


def test_row_14_previous_model_stays_active_when_a_model_cannot_be_loaded(
    target: Target, server: Server
) -> None:
    put_scan(server, "contoured", ct=scans.scan(0))
    before = infer(server, target.model, "contoured")
    assert before.status_code == 200, before.text
    with target.broken_model(server):
        after = infer(server, target.model, "contoured")
    assert after.status_code == 200, after.text
    assert after.content == before.content


def test_row_17_asking_for_the_next_sample_starts_no_process(server: Server) -> None:
    put_scan(server, "four", "five", "six", ct=scans.scan(0))
    wait_until_idle(server)
    before = children(server)
    answer = server.ask("POST", "/activelearning/random", json={})
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"]
    limit = time.monotonic() + WATCHED_S
    while time.monotonic() < limit:
        assert children(server).items() <= before.items()
        time.sleep(0.1)


def children(server: Server) -> dict[int, str]:
    """Return the server's child processes: process id -> end of the command line."""
    by_pid = {}
    for process in server.process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            by_pid[process.pid] = " ".join(process.cmdline())[-200:]
    return by_pid


def wait_until_idle(server: Server) -> None:
    """Wait until all processes that the server started are idle: MONAI Label starts some at its own start."""

    def is_idle() -> bool:
        before = processor_times(server)
        time.sleep(WATCHED_S)
        return processor_times(server) == before

    wait_until(is_idle, "nothing has work", context=lambda: children(server))


def processor_times(server: Server) -> dict[int, float]:
    """Return the processor time of each child process: process id -> seconds."""
    by_pid = {}
    for process in server.process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            by_pid[process.pid] = float(sum(process.cpu_times()[:2]))
    return by_pid
