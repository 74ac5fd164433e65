"""Two servers over one studies folder: they share one training, which survives the end of either server."""

from pathlib import Path

import psutil
import pytest

from tests.server.running import Server, put_case, put_model, running
from tests.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.server

CASES = [f"case_{letter}" for letter in "abcdef"]


def trainings(*servers: Server) -> list[psutil.Process]:
    return [
        child
        for server in servers
        if server.process.is_running() and server.process.status() != psutil.STATUS_ZOMBIE
        for child in server.process.children()
        if "lib.retrain.training_process" in child.cmdline()
    ]


def wait_for_training(server: Server, *, after_epoch: int = 0) -> int:
    """Return the epoch of the training, once it is later than `after_epoch`."""

    def epoch() -> int:
        run = server.ask("GET", "/organnet/status").json()["training"]
        return int(run["epoch"]) if run else 0

    wait_until(lambda: epoch() > after_epoch, "an epoch ends", context=server.end_of_log)
    return epoch()


def test_one_of_two_servers_trains_and_the_other_continues_after_its_end(tmp_path: Path) -> None:
    for folder in ("one", "two", "models"):
        (tmp_path / folder).mkdir()
    put_model(tmp_path / "models")
    conf = {"model_dir": str(tmp_path / "models")}
    with running(tmp_path / "one", conf=conf) as one:
        for case in CASES:
            put_case(one, case, is_labelled=True)
        with running(tmp_path / "two", conf=conf, studies=one.studies) as two:
            started = two.ask("POST", "/train/organnet25d", json={"max_epochs": 100_000})
            assert started.status_code == 200, started.text
            assert one.ask("POST", "/train/organnet25d", json={}).status_code == 429
            epoch = wait_for_training(two)
            assert len(trainings(one, two)) == len(trainings(one)) == 1
            one.process.kill()
            one.process.wait(LIMIT_S)
            wait_until(lambda: trainings(two), "the other server continues the training")
            assert len(trainings(two)) == 1
            wait_for_training(two, after_epoch=epoch)
            assert two.ask("GET", "/train/").json()["id"] == started.json()["id"]
            assert two.ask("DELETE", "/train/").json()["status"] == "STOPPED"
            psutil.wait_procs(trainings(two), timeout=LIMIT_S)
            assert trainings(two) == []
