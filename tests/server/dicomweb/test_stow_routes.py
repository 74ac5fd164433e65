"""STOW-RS requests over a real PACS: which parts are forwarded, and which are refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

from lib.dicom.ct_writer import write_ct_series
from lib.pacs.orthanc import Orthanc
from lib.server.requests import MAX_UPLOAD_BYTES
from tests.pacs.orthancs import orthanc, put_ct
from tests.phantoms import make_ct
from tests.server.running import Server, put_model, running
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.server

KIND = 'multipart/related; type="application/dicom"; boundary=part-of-a-test'


@dataclass(frozen=True, slots=True)
class Installation:
    """A PACS with a patient, and a server in front of it."""

    pacs: Orthanc
    server: Server
    folder: Path
    series_uid: str

    def instances(self, **query: str) -> set[str]:
        url = f"{self.pacs.dicomweb_url}/instances"
        stored = requests.get(url, params=query, timeout=LIMIT_S).json()
        return {entry["00080018"]["Value"][0] for entry in stored}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("stow")
    for name in ("server", "server/models"):
        (folder / name).mkdir()
    put_model(folder / "server" / "models")
    with orthanc(folder / "orthanc") as pacs:
        uid = put_ct(pacs, make_ct(image_id="known"), folder / "known")
        with running(folder / "server", studies=pacs.dicomweb_url) as server:
            yield Installation(pacs, server, folder, uid)


@pytest.fixture
def new_files(installation: Installation, tmp_path: Path) -> list[Path]:
    """Slices of a patient that the PACS does not have yet."""
    write_ct_series(make_ct(image_id="new"), tmp_path / "new", patient_id="new")
    return sorted((tmp_path / "new").glob("*.dcm"))


def body(*contents: bytes, kind: str = "application/dicom") -> bytes:
    head = f"--part-of-a-test\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"\r\n".join(head + content for content in contents) + b"\r\n--part-of-a-test--"


def sent(
    installation: Installation, content: bytes, path: str = "wado/studies", **headers: str
) -> requests.Response:
    given = {"Content-Type": KIND, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return installation.server.ask("POST", f"/proxy/dicom/{path}", data=content, headers=given)


def uids(answer: dict[str, Any], tag: str) -> set[str]:
    return {item["00081155"]["Value"][0] for item in answer.get(tag, {}).get("Value", ())}


def comments(answer: dict[str, Any], tag: str) -> list[str]:
    return [item["00991001"]["Value"][0] for item in answer[tag]["Value"]]


def uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


class TestObjectsThatAreNotContours:
    @pytest.mark.parametrize("service", ["wado/", "stow/", "qido/", ""])
    def test_are_forwarded_to_the_pacs_unchanged(
        self, installation: Installation, new_files: list[Path], service: str
    ) -> None:
        answer = sent(
            installation, body(*(file.read_bytes() for file in new_files)), f"{service}studies"
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "application/dicom+json"
        assert uids(answer.json(), "00081199") == set(map(uid_of, new_files))
        assert installation.instances() >= set(map(uid_of, new_files))
        file = new_files[0]
        stored = requests.post(
            f"{installation.pacs.url}/tools/lookup", data=uid_of(file), timeout=LIMIT_S
        ).json()[0]["ID"]
        stored_bytes = requests.get(
            f"{installation.pacs.url}/instances/{stored}/file", timeout=LIMIT_S
        ).content
        assert stored_bytes == file.read_bytes()

    def test_are_forwarded_also_when_others_are_refused(
        self, installation: Installation, new_files: list[Path]
    ) -> None:
        first, second, *_ = new_files
        content = body(first.read_bytes(), b"garbage", second.read_bytes())
        answer = sent(installation, content)
        assert answer.status_code == 202
        assert uids(answer.json(), "00081199") == {uid_of(first), uid_of(second)}
        (comment,) = comments(answer.json(), "0008119A")
        assert "not a DICOM object" in comment
        assert installation.instances() >= {uid_of(first), uid_of(second)}

    def test_are_accepted_for_the_study_of_the_request_only(
        self, installation: Installation, new_files: list[Path]
    ) -> None:
        first, *_ = new_files
        study = str(pydicom.dcmread(first).StudyInstanceUID)
        other = sent(installation, body(first.read_bytes()), "wado/studies/1.2.3")
        assert other.status_code == 409
        assert "another study" in comments(other.json(), "00081198")[0]
        assert uid_of(first) not in installation.instances()
        assert (
            sent(installation, body(first.read_bytes()), f"wado/studies/{study}").status_code == 200
        )

    def test_are_502_while_the_pacs_is_down(
        self, installation: Installation, new_files: list[Path]
    ) -> None:
        installation.pacs.kill()
        try:
            answer = sent(installation, body(new_files[0].read_bytes()))
        finally:
            installation.pacs.start()
        assert answer.status_code == 502
        assert "cannot be reached" in answer.json()["detail"]


class TestRefusedRequest:
    def test_with_garbage_only(self, installation: Installation) -> None:
        before = installation.instances()
        answer = sent(installation, body(b"garbage", bytes(5000)))
        assert answer.status_code == 409
        assert len(comments(answer.json(), "0008119A")) == 2
        assert installation.instances() == before

    def test_with_parts_of_another_media_type(
        self, installation: Installation, new_files: list[Path]
    ) -> None:
        answer = sent(installation, body(new_files[0].read_bytes(), kind="text/html"))
        assert answer.status_code == 409
        assert "expected application/dicom" in comments(answer.json(), "0008119A")[0]
        assert uid_of(new_files[0]) not in installation.instances()

    def test_is_answered_in_xml_if_only_xml_is_accepted(self, installation: Installation) -> None:
        answer = sent(installation, body(b"garbage"), Accept="application/dicom+xml")
        assert answer.status_code == 409
        assert answer.headers["Content-Type"] == "application/dicom+xml"
        assert "OtherFailuresSequence" in answer.text

    def test_with_a_truncated_body(self, installation: Installation, new_files: list[Path]) -> None:
        answer = sent(installation, body(new_files[0].read_bytes())[:-30])
        assert answer.status_code == 400
        assert uid_of(new_files[0]) not in installation.instances()

    @pytest.mark.parametrize(
        "kind",
        [
            "application/json",
            "application/dicom",
            'multipart/related; type="application/dicom+json"; boundary=b',
        ],
    )
    def test_with_another_content_type(self, installation: Installation, kind: str) -> None:
        answer = sent(installation, body(b"x"), Content_Type=kind)
        assert answer.status_code == 415

    @pytest.mark.parametrize("path", ["wado/studies/1.2/series", "wado/series", "stow/instances"])
    def test_to_an_unknown_address(self, installation: Installation, path: str) -> None:
        assert sent(installation, body(b"x"), path).status_code == 405

    def test_above_the_size_limit(self, installation: Installation) -> None:
        connection = HTTPConnection(
            installation.server.url.removeprefix("http://"), timeout=LIMIT_S
        )
        connection.putrequest("POST", "/proxy/dicom/wado/studies")
        connection.putheader("Content-Type", KIND)
        connection.putheader("Content-Length", str(MAX_UPLOAD_BYTES * 2))
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()


def test_no_received_file_remains_in_the_temporary_folders(installation: Installation) -> None:
    sent(installation, body(b"garbage"))
    assert not list(installation.server.scratch.glob("organnet-*"))
