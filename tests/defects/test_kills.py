"""A server that is killed at the worst moment, and the next one over the same folders: rows 3 and 10."""

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.defects import scans
from tests.defects.client import as_file, put_label, put_scan
from tests.defects.targets import Target
from tests.server.running import Server
from tests.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.server

CASES = [f"case_{number}" for number in range(6)]
SCANS = [f"scan_{number}" for number in range(8)]
HISTORY = 60_000
"""Numbers that are remembered of one case: so many that writing the index takes a moment."""


@dataclass(slots=True)
class Wreck:
    """What a server left that was killed while it trained and wrote, and what the next one made of it.

    Attributes:
        acknowledged: Image id -> the number that the server had last said it kept.
        index_bytes: Size of the index file that the kill left.
        survivors: The killed server's processes that went on all the same.
        refusal: Why the next server did not start, empty if it did.
        numbers: Image id -> number, as the next server knows them; -1 where it knows none.
        accepted: How many of two trainings asked for at once the next server began.
    """

    acknowledged: dict[str, int] = field(default_factory=dict)
    index_bytes: int = 0
    survivors: list[str] = field(default_factory=list)
    refusal: str = ""
    numbers: dict[str, int] = field(default_factory=dict)
    accepted: int = 0


@pytest.fixture(scope="module")
def wreck(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wreck]:
    folder = tmp_path_factory.mktemp("killed")
    found = Wreck()
    with target.running(folder) as server:
        for seed, case in enumerate(CASES):
            put_scan(server, case, ct=scans.scan(seed))
            assert put_label(server, case, as_file(scans.label(seed))).status_code == 200
        put_scan(server, *SCANS, ct=scans.scan(0))
        begin_training(server, target)
        started = server.process.children(recursive=True)
        assert started, "nothing trains"
        kill_while_the_index_is_written(server, found)
    try:
        found.index_bytes = (server.studies / "datastore_v2.json").stat().st_size
        _, alive = psutil.wait_procs(started, timeout=60)
        found.survivors = [command for one in alive if (command := command_of(one))]
        look_again(folder, target, found)
        yield found
    finally:
        for one in started:
            if one.is_running():
                one.kill()


def command_of(process: psutil.Process) -> str:
    """Return the end of a process's command, nothing where it has ended and nobody has asked how."""
    try:
        return " ".join(process.cmdline())[-200:]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def begin_training(server: Server, target: Target) -> None:
    """Start a training without end, and wait for its first epoch."""
    started = server.ask("POST", f"/train/{target.model}", json={"max_epochs": 100_000})
    assert started.status_code == 200, started.text

    def epoch() -> object:
        return server.ask("GET", "/info/").json()["train_stats"][target.model].get("epoch")

    wait_until(epoch, "an epoch ends", context=server.end_of_log)


def kill_while_the_index_is_written(server: Server, found: Wreck) -> None:
    """Kill the server as soon as its index is seen to change by one request more."""
    assert remember(server, CASES[0], {"history": list(range(HISTORY))})
    for number, image_id in enumerate(SCANS):
        assert remember(server, image_id, {"number": number})
        found.acknowledged[image_id] = number

    def one_more() -> None:
        with suppress(requests.ConnectionError):
            remember(server, SCANS[0], {"number": len(SCANS)})

    index = server.studies / "datastore_v2.json"
    before = seen(index)
    asked = threading.Thread(target=one_more)
    asked.start()
    while seen(index) == before and asked.is_alive():
        pass
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(LIMIT_S)
    asked.join()


def remember(server: Server, image_id: str, info: Mapping[str, Any]) -> bool:
    """Tell the server something of an image, and return whether it has kept it."""
    path = f"/datastore/image/info?image={image_id}"
    return server.ask("PUT", path, data={"info": json.dumps(info)}).status_code == 200


def seen(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


def look_again(folder: Path, target: Target, found: Wreck) -> None:
    """Start a server over what the killed one left."""
    try:
        with target.running(folder) as server:
            objects = server.ask("GET", "/datastore/?output=all").json()["objects"]
            infos = {image_id: entry["image"]["info"] for image_id, entry in objects.items()}
            found.numbers = {
                image_id: int(info.get("number", -1)) for image_id, info in infos.items()
            }
            path, given = f"/train/{target.model}", {"max_epochs": 100_000}
            statuses = [server.ask("POST", path, json=given).status_code for _ in range(2)]
            found.accepted = statuses.count(200)
            server.ask("DELETE", "/train/")
    except AssertionError as error:
        found.refusal = str(error)


def test_row_03_index_survives_a_kill_while_it_is_written(wreck: Wreck) -> None:
    assert wreck.refusal == "", f"the kill left {wreck.index_bytes} bytes"
    assert sorted(wreck.numbers) == sorted([*CASES, *SCANS])
    # The one that was being written at the time may be the new one.
    lost = {i: number for i, number in wreck.acknowledged.items() if wreck.numbers[i] < number}
    assert lost == {}


def test_row_10_training_ends_with_a_killed_server_and_the_next_begins_one(wreck: Wreck) -> None:
    assert wreck.survivors == []
    assert wreck.refusal == ""
    assert wreck.accepted <= 1
