"""Requests for the next case over HTTP, as both clients send them, from one client and from ten at a time."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import select

from lib.imaging.scans import write_ct, write_label
from lib.storage.database import FILE, Database, state_folder
from lib.storage.tables import Lease, now
from tests.server.running import (
    ANSWER_LIMIT_S,
    Server,
    put_case,
    put_model,
    running,
    small_ct,
    two_organs,
)
from tests.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.server

CASES, CLIENTS = 200, 10
SLICER = {"client_id": "slicer-1", "strategy": ["claspe"], "model": ["organnet25d"]}
"""Slicer sends its whole configuration along."""


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with 200 scans and no model."""
    folder = tmp_path_factory.mktemp("clinic")
    studies = folder / "studies"
    studies.mkdir()
    first = studies / "case_000.nii.gz"
    write_ct(first, small_ct())
    for number in range(1, CASES):
        (studies / f"case_{number:03d}.nii.gz").hardlink_to(first)
    with running(folder) as started:
        yield started


class Annotator(threading.Thread):
    """A client that requests a case, submits its label, and continues until all cases are labelled."""

    def __init__(self, url: str, name: str, label: Path, strategy: str) -> None:
        super().__init__(name=name)
        self.url, self.label, self.strategy = url, label, strategy
        self.http = requests.Session()
        self.http.headers["Connection"] = "close"
        self.assigned: list[str] = []
        self.last: dict[str, Any] = {}
        self.error: list[str] = []

    def ask(self) -> dict[str, Any]:
        answer = self.http.post(
            f"{self.url}/activelearning/{self.strategy}",
            json={"client_id": self.name},
            timeout=ANSWER_LIMIT_S,
        )
        if answer.status_code != 200:
            self.error.append(answer.text)
        self.last = answer.json()
        return self.last

    def submit(self, image_id: str) -> None:
        with self.label.open("rb") as file:
            answer = self.http.put(
                f"{self.url}/datastore/label?image={image_id}&tag=final",
                data={"params": json.dumps({"client_id": self.name})},
                files={"label": ("label.nii.gz", file)},
                timeout=ANSWER_LIMIT_S,
            )
        if answer.status_code != 200:
            self.error.append(answer.text)

    def run(self) -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and not self.error:
            image_id = self.ask().get("id")
            if image_id is not None:
                self.assigned.append(image_id)
                self.submit(image_id)
            elif self.last.get("is_all_labelled"):
                return
            else:
                time.sleep(0.2)
        self.error.append(f"did not finish in time: {self.last}")


def expire_leases(server: Server) -> None:
    """Set the stored end of all leases to a past time."""
    database = Database(state_folder(str(server.studies), server.models) / FILE)
    with database.writing() as session:
        for lease in session.scalars(select(Lease)):
            lease.expires_at = now() - timedelta(seconds=1)
    database.close()


def test_ten_clients_contour_each_of_two_hundred_cases_once(clinic: Server, tmp_path: Path) -> None:
    label = tmp_path / "label.nii.gz"
    write_label(label, two_organs(small_ct().grid))
    absent = Annotator(clinic.url, "absent", label, "first")
    abandoned_case = absent.ask()["id"]
    clients = [
        Annotator(clinic.url, f"client-{n}", label, strategy)
        for n, strategy in zip(range(CLIENTS), ["claspe", "random", "first"] * 4, strict=False)
    ]
    for client in clients:
        client.start()
    wait_until(
        lambda: (
            clinic.ask("GET", "/datastore/").json()["completed"] == CASES - 1
            or any(client.error for client in clients)
        ),
        "all cases but the abandoned one are labelled",
        context=clinic.end_of_log,
    )
    expire_leases(clinic)
    for client in clients:
        client.join()
        client.http.close()
    absent.http.close()
    assert [client.error for client in clients if client.error] == []
    counts = Counter(image_id for client in clients for image_id in client.assigned)
    assert set(counts) == {f"case_{n:03d}" for n in range(CASES)}
    assert counts.most_common(1)[0][1] == 1
    # The cases are shared fairly between the clients.
    assert min(len(client.assigned) for client in clients) >= CASES // CLIENTS // 3
    # The first client did not submit: another one got its case after the lease had expired.
    holders = [client.name for client in clients if abandoned_case in client.assigned]
    assert len(holders) == 1
    assert clinic.ask("GET", "/organnet/leases").json() == []
    labelled = clinic.ask("GET", "/organnet/labels").json()["labels"]
    assert len(labelled) == CASES


def test_when_all_cases_are_labelled_both_clients_get_a_reason(clinic: Server) -> None:
    for strategy in ("claspe", "first", "coldstart"):
        answer = clinic.ask("POST", f"/activelearning/{strategy}", json=SLICER)
        assert answer.status_code == 200
        assert "id" not in answer.json()
        assert answer.json()["why"] == "all cases are labelled"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model whose image scores are computed."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "models").mkdir()
    put_model(folder / "models")
    with running(folder, conf={"scoring": "on"}) as started:
        for name in ("a", "b", "c"):
            put_case(started, name)
        put_case(started, "done", is_labelled=True)
        (started.studies / "broken.nii.gz").write_bytes(b"no scan")
        wait_until(
            lambda: scoring_status(started)["sampled"] >= 3,
            "three images are scored",
            context=started.end_of_log,
        )
        yield started


def scoring_status(server: Server) -> dict[str, Any]:
    status: dict[str, Any] = server.ask("GET", "/organnet/status").json()["active_learning"]
    return status


def test_images_are_scored_in_the_background_for_the_active_model(scored: Server) -> None:
    status = scoring_status(scored)
    assert (status["scored"], status["sampled"], status["unlabelled"]) == (3, 3, 4)
    assert list(status["unreadable"]) == ["broken"]
    version = scored.ask("GET", "/organnet/status").json()["served"]["version"]
    assert status["model_version"] == version


def test_slicer_and_ohif_get_the_reason_for_a_case(scored: Server) -> None:
    slicer = scored.ask("POST", "/activelearning/claspe", json=SLICER).json()
    assert Path(slicer["path"]).is_file()
    assert slicer["lease"]["holder"] == "slicer-1"
    # OHIF does not send a client id.
    ohif = scored.ask("POST", "/activelearning/entropy", json={}).json()
    for answer in (slicer, ohif):
        assert answer["rank"] >= 1
        assert answer["of"] >= 2
        assert answer["why"]
        assert answer["is_stale"] is False
    last = scored.ask("POST", "/activelearning/structure_qc", json={}).json()
    assert {slicer["id"], ohif["id"], last["id"]} == {"a", "b", "c"}
    none = scored.ask("POST", "/activelearning/random", json={}).json()
    assert "id" not in none
    assert "broken" in none["why"]


def test_clients_preselect_the_default_strategy(scored: Server) -> None:
    strategies = scored.ask("GET", "/info/").json()["strategies"]
    assert next(iter(strategies)) == "claspe"
    assert len(strategies) == 9
    assert all(strategy["description"] for strategy in strategies.values())
