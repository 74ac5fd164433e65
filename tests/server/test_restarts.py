"""Servers that are stopped or killed at a bad moment (DESIGN section 4, defects 3, 10 and 13)."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.server.running import ANYTHING_GOES, Server, put_case, put_model, running
from tests.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.server

CASES = [f"case_{letter}" for letter in "abcdef"]


def start_training(server: Server) -> psutil.Process:
    """Start an endless training and return its process, after its first epoch."""
    started = server.ask("POST", "/train/organnet25d", json={"max_epochs": 100_000})
    assert started.status_code == 200, started.text
    return training_of(server)


def training_of(server: Server, *, after_epoch: int = 0) -> psutil.Process:
    """Return the training's process, once it has finished more than `after_epoch` epochs."""
    wait_until(lambda: epoch(server) > after_epoch, "an epoch ends", context=server.end_of_log)
    return next(
        child
        for child in server.process.children()
        if "lib.retrain.training_process" in child.cmdline()
    )


def epoch(server: Server) -> int:
    return int(server.ask("GET", "/info/").json()["train_stats"]["organnet25d"].get("epoch", 0))


def put_damage(folder: Path) -> None:
    """Write files such as a killed server and an incomplete copy leave behind."""
    for name in ("studies/labels/final", "models", "sessions"):
        (folder / name).mkdir(parents=True)
    (folder / "studies" / "datastore_v2.json").touch()
    (folder / "models" / "train_stats.json").write_text('{"best_metric": NaN, "epo')
    (folder / "models" / "served.json").write_text("")
    (folder / "sessions" / "6f0a6cde-c6b5-11f0-8de9-0242ac120002").mkdir()
    (folder / "sessions" / "what-is-this").mkdir()


def test_server_starts_over_damaged_files_and_stops_with_its_training(tmp_path: Path) -> None:
    put_damage(tmp_path)
    with running(tmp_path) as server:
        info = server.ask("GET", "/info/").json()
        assert info["train_stats"] == {"organnet25d": {}}
        assert info["models"] == {}
        for case in CASES:
            put_case(server, case, is_labelled=True)
        assert server.images() == CASES
        assert server.ask("GET", "/info/").json()["datastore"]["completed"] == len(CASES)
        training = start_training(server)
        # SIGINT to the server process alone, as a service manager sends it.
        server.process.send_signal(signal.SIGINT)
        server.process.wait(LIMIT_S)
        training.wait(LIMIT_S)
        assert not training.is_running()


def test_training_ends_with_a_killed_server_and_continues_in_the_next(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    put_model(tmp_path / "models")
    with running(tmp_path) as server:
        for case in CASES:
            put_case(server, case, is_labelled=True)
        training = start_training(server)
        left = epoch(server)
        server.process.kill()
        server.process.wait(LIMIT_S)
        training.wait(LIMIT_S)
    with running(tmp_path) as server:
        # The training continues without a new request.
        training_of(server, after_epoch=left)
        assert server.ask("DELETE", "/train/").json()["status"] == "STOPPED"
        left = epoch(server)
        again = server.ask("POST", "/train/organnet25d", json={"max_epochs": 100_000})
        assert again.json()["id"] == server.ask("GET", "/train/").json()["id"] == "1"
        training_of(server, after_epoch=left)


def test_a_training_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for case in CASES:
            put_case(server, case, is_labelled=True)
        training = start_training(server)
        left = epoch(server)
        training.kill()
        again = training_of(server, after_epoch=left)
        assert again.pid != training.pid
        run = server.ask("GET", "/organnet/status").json()["training"]
        assert "its process ended with code -9" in run["notes"][0]


def test_a_finished_training_activates_its_model(tmp_path: Path) -> None:
    with running(tmp_path, conf=ANYTHING_GOES) as server:
        for case in CASES:
            put_case(server, case, is_labelled=True)
        config = server.ask("GET", "/info/").json()["trainers"]["organnet25d"]["config"]
        assert server.ask("POST", "/train/", json={}).status_code == 200
        is_over = ("DONE", "STOPPED", "ERROR")
        wait_until(lambda: server.ask("GET", "/train/").json()["status"] in is_over, "it ends")
        assert server.ask("GET", "/train/").json()["status"] == "DONE", server.end_of_log()
        info = server.ask("GET", "/info/").json()
        stats = info["train_stats"]["organnet25d"]
        assert stats["epoch"] == stats["total_epochs"] == config["max_epochs"]
        assert stats["total_time"]
        assert info["models"]["organnet25d"]["version"] == stats["version"]
        assert server.ask("POST", "/infer/organnet25d?image=case_a").status_code == 200
