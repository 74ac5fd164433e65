"""A real server with a real PACS: listing, choosing, contouring, submitting, and the resulting PACS objects."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from lib.dicom.ct_writer import write_ct_series
from lib.imaging.scans import read_ct, read_label, write_label
from lib.pacs.orthanc import Orthanc
from tests.pacs.orthancs import orthanc, put_ct
from tests.server.running import TINY, Server, parts, put_model, running, small_ct, two_organs
from tests.waiting import LIMIT_S, wait_until


@dataclass(frozen=True, slots=True)
class Clinic:
    """A server and its PACS, with two patients and a series that is not a regular CT."""

    server: Server
    pacs: Orthanc
    folder: Path
    images: tuple[str, str]
    broken: str

    def pacs_has(self, modality: str) -> list[dict[str, Any]]:
        url = f"{self.pacs.dicomweb_url}/instances"
        answer = requests.get(url, params={"Modality": modality}, timeout=LIMIT_S)
        payload: list[dict[str, Any]] = answer.json()
        return payload

    def submit(self, image: str) -> requests.Response:
        ct = read_ct(self.folder / image)
        file = self.folder / "sent.nii.gz"
        write_label(file, two_organs(ct.grid))
        params = {"label_info": [{"name": n, "idx": v} for n, v in TINY.labels.items()]}
        with file.open("rb") as content:
            return self.server.ask(
                "PUT",
                f"/datastore/label?image={image}&tag=final",
                data={"params": json.dumps(params)},
                files={"label": (file.name, content)},
            )

    def status(self) -> dict[str, Any]:
        payload: dict[str, Any] = self.server.ask("GET", "/organnet/status").json()["pacs"]
        return payload


def eventually(what: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    wait_until(what, "the condition is true")


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    folder = tmp_path_factory.mktemp("clinic")
    (folder / "models").mkdir()
    put_model(folder / "models")
    with orthanc(folder / "pacs") as pacs:
        one, two = (put_ct(pacs, small_ct(name), folder / name) for name in ("pt_1", "pt_2"))
        for uid, name in ((one, "pt_1"), (two, "pt_2")):
            (folder / name).rename(folder / uid)
        broken = write_ct_series(small_ct("gap"), folder / "gap", patient_id="gap")
        files = sorted((folder / "gap").glob("*.dcm"))
        pacs.upload(files[:5] + files[6:])
        with running(folder, studies=pacs.dicomweb_url) as server:
            started = Clinic(server, pacs, folder, (one, two), broken)
            eventually(lambda: set(server.images()) == {one, two})
            yield started


def test_series_that_cannot_be_contoured_are_listed_with_the_reason(clinic: Clinic) -> None:
    eventually(lambda: clinic.broken in clinic.status()["refused"])
    listed = clinic.server.ask("GET", "/datastore/?output=all").json()
    assert clinic.broken not in listed["objects"]
    assert "1 slice missing" in listed["refused"][clinic.broken]
    answer = clinic.server.ask("POST", f"/infer/organnet25d?image={clinic.broken}")
    assert answer.status_code == 422
    assert "1 slice missing" in answer.json()["detail"]


def test_the_image_of_a_series_is_its_uid(clinic: Clinic) -> None:
    (one, two) = clinic.images
    found = clinic.server.ask("GET", f"/organnet/series/{one}").json()
    assert (found["image"], found["series_uid"]) == (one, one)
    listed = clinic.server.ask("GET", "/organnet/series").json()
    assert found in listed["series"]
    assert {series["image"] for series in listed["series"]} == {one, two}
    assert listed["volume_files"] == []
    assert clinic.server.ask("GET", f"/organnet/series/{clinic.broken}").status_code == 404


def test_contours_lie_on_the_series_own_voxels(clinic: Clinic, tmp_path: Path) -> None:
    (uid, _) = clinic.images
    answer = clinic.server.ask("POST", f"/infer/organnet25d?image={uid}&output=all")
    assert answer.status_code == 200, answer.text
    name, content = parts(answer)["image"]
    file = tmp_path / name
    file.write_bytes(content)
    assert (
        clinic.server.ask("GET", f"/datastore/image/info?image={uid}").json()["PatientID"] == "pt_1"
    )


@pytest.mark.parametrize("strategy", ["first", "random", "claspe", "coldstart"])
def test_a_strategy_returns_a_patient_with_the_ids_that_ohif_opens(
    clinic: Clinic, strategy: str
) -> None:
    body = {"client_id": f"ohif-{strategy}"}
    chosen = clinic.server.ask("POST", f"/activelearning/{strategy}", json=body).json()
    try:
        assert chosen["id"] in clinic.images
        assert chosen["SeriesInstanceUID"] == chosen["id"]
        assert chosen["StudyInstanceUID"]
    finally:
        clinic.server.ask(
            "DELETE", f"/organnet/leases/{chosen['id']}?client_id={body['client_id']}"
        )


def test_a_submitted_label_counts_at_once_and_reaches_the_pacs(clinic: Clinic) -> None:
    (_, uid) = clinic.images
    answer = clinic.submit(uid)
    assert answer.status_code == 200, answer.text
    objects = clinic.server.ask("GET", "/datastore/?output=all").json()["objects"]
    assert "final" in objects[uid]["labels"]
    eventually(lambda: len(clinic.pacs_has("SEG")) == 1)
    back = clinic.server.ask("GET", f"/datastore/label?label={uid}&tag=final")
    file = clinic.folder / "back.nii.gz"
    file.write_bytes(back.content)
    array, _ = read_label(file, image_id=uid, image_grid=None)
    assert (array == two_organs(read_ct(clinic.folder / uid).grid).array).all()
    eventually(lambda: clinic.status()["outbox"] == [])
    exported = clinic.server.ask("GET", f"/organnet/export/{uid}?format=rtstruct")
    assert exported.status_code == 200, exported.text
    assert exported.content[128:132] == b"DICM"


def test_an_rtstruct_is_sent_on_request(clinic: Clinic) -> None:
    (_, uid) = clinic.images
    answer = clinic.server.ask("POST", f"/organnet/export/{uid}/pacs?format=rtstruct")
    assert answer.status_code == 200, answer.text
    (rtstruct,) = clinic.pacs_has("RTSTRUCT")
    assert rtstruct["00080018"]["Value"] == [answer.json()["sop_instance_uid"]]
    time.sleep(5)
    history = clinic.server.ask("GET", f"/organnet/labels/{uid}").json()
    assert [version["source"] for version in history] == ["client"], (
        "it is this server's own object"
    )


def test_a_label_of_an_open_reader_study_is_not_sent(clinic: Clinic) -> None:
    (uid, _) = clinic.images
    opened = clinic.server.ask("POST", f"/organnet/readers/{uid}", json={"readers": 2})
    assert opened.status_code == 200, opened.text
    try:
        assert clinic.submit(uid).status_code == 200
        answer = clinic.server.ask("POST", f"/organnet/export/{uid}/pacs?version=1")
        assert answer.status_code == 409
        assert "is sent when all readers have submitted" in answer.json()["detail"]
    finally:
        clinic.server.ask("POST", f"/organnet/readers/{uid}", json={"readers": 1})


def test_requests_do_not_wait_for_a_killed_pacs(clinic: Clinic) -> None:
    (uid, _) = clinic.images
    before = len(clinic.pacs_has("SEG"))
    clinic.pacs.kill()
    try:
        assert clinic.submit(uid).status_code == 200
        eventually(lambda: [row["image"] for row in clinic.status()["outbox"]] == [uid])
        eventually(lambda: "cannot be reached" in clinic.status()["outbox"][0]["trouble"])
        assert set(clinic.server.images()) == set(clinic.images)
        eventually(lambda: clinic.status()["trouble"])
        answer = clinic.server.ask("POST", f"/infer/organnet25d?image={uid}&output=json")
        assert answer.status_code == 200, "scans in the cache can be contoured"
    finally:
        clinic.pacs.start()
    eventually(lambda: len(clinic.pacs_has("SEG")) == before + 1)
    eventually(lambda: not clinic.status()["outbox"] and not clinic.status()["trouble"])


def test_the_pacs_is_changed_by_labels_only(clinic: Clinic) -> None:
    (uid, _) = clinic.images
    answer = clinic.server.ask("DELETE", f"/datastore/?id={uid}")
    assert answer.status_code == 404
    assert "use the PACS's own tools" in answer.json()["detail"]
    assert uid in clinic.server.images()
    answer = clinic.server.ask("DELETE", f"/datastore/label?id={uid}&tag=final")
    before = len(clinic.pacs_has("SEG"))
    time.sleep(4)
    assert len(clinic.pacs_has("SEG")) == before


def test_nothing_is_left_in_the_temporary_folder(clinic: Clinic) -> None:
    assert not [path.name for path in clinic.server.scratch.glob("organnet-*")]


def test_a_new_patient_is_listed_within_seconds(clinic: Clinic) -> None:
    uid = put_ct(clinic.pacs, small_ct("pt_3"), clinic.folder / "pt_3")
    eventually(lambda: uid in clinic.server.images())
