"""A server killed at the worst moment, and the next one over the same folders: rows 3 and 10."""

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

from lib.storage.database import FILE, FOLDER
from tests.defects import scans
from tests.defects.client import as_file, put_label, put_scan
from tests.defects.targets import Target
from tests.server.running import Server
from tests.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.server

CASES = [f"case_{number}" for number in range(6)]
SCANS = [f"scan_{number}" for number in range(8)]
HISTORY = 60_000
"""Length of a list stored for one case: so long that writing the index takes a moment."""


@dataclass(slots=True)
class Wreck:
    """State after a server was killed while it trained and wrote, as seen by the next server.

    Attributes:
        acknowledged: Image id -> the last number that the server confirmed as stored.
        index_bytes: Size of the index file after the kill.
        survivors: Processes of the killed server that kept running.
        refusal: Why the next server did not start; empty if it did.
        numbers: Image id -> number, as the next server reports it; -1 where it has none.
        accepted: How many of two requested trainings the next server began.
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
    state = Wreck()
    with target.running(folder) as server:
        for seed, case in enumerate(CASES):
            put_scan(server, case, ct=scans.scan(seed))
            assert put_label(server, case, as_file(scans.label(seed))).status_code == 200
        put_scan(server, *SCANS, ct=scans.scan(0))
        begin_training(server, target)
        started = server.process.children(recursive=True)
        assert started, "nothing trains"
        kill_while_the_index_is_written(server, state)
    try:
        state.index_bytes = index_file(server).stat().st_size
        _, alive = psutil.wait_procs(started, timeout=LIMIT_S)
        state.survivors = [command for process in alive if (command := command_of(process))]
        start_again(folder, target, state)
        yield state
    finally:
        for process in started:
            if process.is_running():
                process.kill()


def command_of(process: psutil.Process) -> str:
    """Return the end of a process's command line; empty if it has ended but was not waited for."""
    try:
        return " ".join(process.cmdline())[-200:]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def begin_training(server: Server, target: Target) -> None:
    """Start an endless training, and wait for its first epoch."""
    started = server.ask("POST", f"/train/{target.model}", json={"max_epochs": 100_000})
    assert started.status_code == 200, started.text

    def epoch() -> object:
        return server.ask("GET", "/info/").json()["train_stats"][target.model].get("epoch")

    wait_until(epoch, "an epoch ends", context=server.end_of_log)


def kill_while_the_index_is_written(server: Server, state: Wreck) -> None:
    """Kill the server as soon as its index file changes during one more request."""
    assert store_info(server, CASES[0], {"history": list(range(HISTORY))})
    for number, image_id in enumerate(SCANS):
        assert store_info(server, image_id, {"number": number})
        state.acknowledged[image_id] = number

    def send_one_more() -> None:
        with suppress(requests.ConnectionError):
            store_info(server, SCANS[0], {"number": len(SCANS)})

    index = index_file(server)
    before = file_state(index)
    request = threading.Thread(target=send_one_more)
    request.start()
    while file_state(index) == before and request.is_alive():
        pass
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(LIMIT_S)
    request.join()


def index_file(server: Server) -> Path:
    """Return the file that holds information about images: MONAI Label's index, or the database's log."""
    database_log = server.studies / FOLDER / f"{FILE}-wal"
    return database_log if database_log.exists() else server.studies / "datastore_v2.json"


def store_info(server: Server, image_id: str, info: Mapping[str, Any]) -> bool:
    """Store information about an image, and return whether the server confirmed it."""
    path = f"/datastore/image/info?image={image_id}"
    return server.ask("PUT", path, data={"info": json.dumps(info)}).status_code == 200


def file_state(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


def start_again(folder: Path, target: Target, state: Wreck) -> None:
    """Start a server over the folders that the killed one left."""
    try:
        with target.running(folder) as server:
            objects = server.ask("GET", "/datastore/?output=all").json()["objects"]
            infos = {image_id: entry["image"]["info"] for image_id, entry in objects.items()}
            state.numbers = {
                image_id: int(info.get("number", -1)) for image_id, info in infos.items()
            }
            path, body = f"/train/{target.model}", {"max_epochs": 100_000}
            statuses = [server.ask("POST", path, json=body).status_code for _ in range(2)]
            state.accepted = statuses.count(200)
            server.ask("DELETE", "/train/")
    except AssertionError as error:
        state.refusal = str(error)


def test_row_03_index_survives_a_kill_while_it_is_written(wreck: Wreck) -> None:
    assert wreck.refusal == "", f"the kill left {wreck.index_bytes} bytes"
    assert sorted(wreck.numbers) == sorted([*CASES, *SCANS])
    # The entry that was being written at the time of the kill may already be the new one.
    lost = {i: number for i, number in wreck.acknowledged.items() if wreck.numbers[i] < number}
    assert lost == {}


def test_row_10_training_ends_with_its_killed_server_and_the_next_server_begins_at_most_one(
    wreck: Wreck,
) -> None:
    assert wreck.survivors == []
    assert wreck.refusal == ""
    assert wreck.accepted <= 1
