"""Automatic retraining: labels that start a training, and what the status shows of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from lib.config import RetrainConfig
from lib.imaging.scans import write_label
from tests.server.running import ANYTHING_GOES, Server, put_case, put_model, running, two_organs
from tests.waiting import wait_until

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with automatic retraining, which the tests switch on."""
    folder = tmp_path_factory.mktemp("learner")
    (folder / "models").mkdir()
    put_model(folder / "models")
    with running(folder, conf={**ANYTHING_GOES, "min_new_labels": "4", "quiet_s": "1"}) as server:
        yield server


def status(server: Server) -> dict[str, Any]:
    answer = server.ask("GET", "/organnet/status")
    assert answer.status_code == 200, answer.text
    payload: dict[str, Any] = answer.json()
    return payload


def wait_for_decision(server: Server, trainings: int) -> dict[str, Any]:
    """Return the status once `trainings` trainings have ended and none is running."""

    def are_over() -> dict[str, Any] | None:
        now = status(server)
        is_idle = now["training"] is None and len(now["history"]["trainings"]) >= trainings
        return now if is_idle else None

    ended = wait_until(are_over, f"{trainings} trainings are over", context=server.end_of_log)
    assert ended is not None
    return ended


def test_settings_are_changed_while_the_server_runs(learner: Server) -> None:
    assert learner.ask("GET", "/organnet/settings").json()["auto_retrain"] is False
    changed = learner.ask("PUT", "/organnet/settings", json={"max_wait_s": 1000, "quiet_s": None})
    assert changed.status_code == 200, changed.text
    assert changed.json() == learner.ask("GET", "/organnet/settings").json()
    assert (changed.json()["max_wait_s"], changed.json()["quiet_s"]) == (1000, 1)
    assert set(changed.json()) == set(RetrainConfig.__dataclass_fields__)
    refused = learner.ask("PUT", "/organnet/settings", json={"max_wait_s": 5, "colour": "red"})
    assert refused.status_code == 400
    assert "colour: no such setting" in refused.json()["detail"]
    assert learner.ask("GET", "/organnet/settings").json()["max_wait_s"] == 1000


def test_no_training_starts_while_retraining_is_off_and_the_status_says_so(learner: Server) -> None:
    for letter in "abcde":
        put_case(learner, f"learn_{letter}", is_labelled=True)
    now = status(learner)
    assert now["next_training"]["reason"] == "automatic training is off (auto_retrain)"
    assert (now["labels"]["total"], now["labels"]["waiting"]) == (5, 5)
    assert now["labels"]["referee"] >= 2
    assert now["training"] is None
    assert now["history"]["trainings"] == []


def test_enough_labels_start_a_training_and_its_model_becomes_active(learner: Server) -> None:
    before = status(learner)["served"]["version"]
    assert learner.ask("PUT", "/organnet/settings", json={"auto_retrain": True}).status_code == 200
    now = wait_for_decision(learner, 1)
    run = now["history"]["trainings"][-1]
    assert (run["state"], run["why"], run["new_labels"]) == (
        "promoted",
        "5 new labels are waiting",
        5,
    )
    assert run["initial_version"] == before
    assert now["served"]["version"] == run["candidate"] != before
    assert now["served"]["reason"] == run["outcome"] == now["last_decision"]["reason"]
    assert now["labels"]["waiting"] == 0
    assert now["next_training"]["reason"] == "no new labels"
    answer = learner.ask("POST", "/infer/organnet25d?image=learn_a&output=json").json()
    assert answer["model_version"] == run["candidate"]
    stats = learner.ask("GET", "/info/").json()["train_stats"]["organnet25d"]
    assert (stats["epoch"], stats["version"], stats["published"]) == (2, run["candidate"], True)
    assert learner.ask("GET", "/train/").json()["status"] == "DONE"


def test_files_copied_into_the_folder_start_a_training_and_later_ones_wait(learner: Server) -> None:
    for letter in "fghi":
        grid = put_case(learner, f"learn_{letter}")
        file = learner.studies / "labels" / "final" / f"learn_{letter}.nii.gz"
        write_label(file, two_organs(grid))
    now = wait_for_decision(learner, 2)
    run = now["history"]["trainings"][-1]
    assert run["new_labels"] == 4
    assert run["labels"] == 9
    put_case(learner, "learn_j", is_labelled=True)
    now = status(learner)
    assert now["labels"]["waiting_cases"] == ["learn_j"]
    assert now["next_training"]["reason"] == "1 of 4 new labels are waiting"


def test_no_model_is_trained_on_an_evaluation_case(learner: Server) -> None:
    for model in learner.ask("GET", "/organnet/models/").json()["models"]:
        details = learner.ask("GET", f"/organnet/models/{model['version']}").json()
        training_cases = {label["image_id"] for label in details["labels"]}
        evaluation_cases = set(details["report"].get("cases", {}))
        assert not training_cases & evaluation_cases
