"""The proxy between the viewer and a real PACS: forwarded and refused requests, and errors of the PACS."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

from lib.pacs.orthanc import Orthanc
from tests.pacs.orthancs import orthanc, put_ct
from tests.phantoms import make_ct
from tests.server.running import Server, running
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.server

USERS = {"label": "secret"}
ENVIRONMENT = {
    "MONAI_LABEL_DICOMWEB_USERNAME": "label",
    "MONAI_LABEL_DICOMWEB_PASSWORD": "secret",
}
PATIENTS = ("first", "second")


@dataclass(frozen=True, slots=True)
class Installation:
    """A PACS with two patients, and a server in front of it."""

    pacs: Orthanc
    server: Server
    folder: Path

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.server.ask("GET", f"/proxy/dicom/{path}", **options)

    def direct(self, path: str, **options: Any) -> requests.Response:
        url = f"{self.pacs.dicomweb_url}/{path}"
        return requests.get(url, auth=self.pacs.auth, timeout=LIMIT_S, **options)

    def study_of(self, patient_id: str) -> str:
        (study,) = self.get("qido/studies", params={"PatientID": patient_id}).json()
        return str(study["0020000D"]["Value"][0])

    def slices(self, patient_id: str) -> list[Path]:
        return sorted((self.folder / patient_id).glob("*.dcm"))


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "server").mkdir()
    with orthanc(folder / "orthanc", users=USERS) as pacs:
        for name in PATIENTS:
            put_ct(pacs, make_ct(image_id=name), folder / name)
        with running(
            folder / "server", studies=pacs.dicomweb_url, environment=ENVIRONMENT
        ) as server:
            yield Installation(pacs, server, folder)


def patients(answer: requests.Response) -> set[str]:
    return {study["00100020"]["Value"][0] for study in answer.json()}


class TestSearch:
    def test_returns_the_matches_of_the_query_only(self, installation: Installation) -> None:
        assert patients(installation.get("qido/studies")) == set(PATIENTS)
        for name in PATIENTS:
            for service in ("qido/", "wado/", ""):
                answer = installation.get(f"{service}studies", params={"PatientID": name})
                assert patients(answer) == {name}

    @pytest.mark.parametrize("wildcard", ["fir*", "fir%2A", "f%69rst", "FIRST"])
    def test_forwards_the_query_unchanged(self, installation: Installation, wildcard: str) -> None:
        query = f"studies?00100020={wildcard}&limit=101&offset=0&includefield=00081030%2C00080060"
        # How Orthanc interprets a quoted asterisk is not tested here.
        assert patients(installation.get(f"qido/{query}")) == patients(installation.direct(query))

    def test_returns_addresses_on_this_server(self, installation: Installation) -> None:
        answer = installation.get("qido/studies", params={"PatientID": "first"})
        assert installation.pacs.url not in answer.text
        address = answer.json()[0]["00081190"]["Value"][0]
        assert address.startswith("/proxy/dicom/wado/studies/")
        entries = installation.server.ask("GET", f"{address}/metadata").json()
        assert {entry["00100020"]["Value"][0] for entry in entries} == {"first"}


class TestRetrieval:
    def test_returns_the_bytes_of_the_pacs(self, installation: Installation) -> None:
        path = f"studies/{installation.study_of('first')}"
        (instance, *_) = installation.direct(f"{path}/instances").json()
        series = instance["0020000E"]["Value"][0]
        uid = instance["00080018"]["Value"][0]
        path = f"{path}/series/{series}/instances/{uid}/frames/1"
        accept = {"Accept": 'multipart/related; type="application/octet-stream"'}
        proxied, original = (
            installation.get(f"wado/{path}", headers=accept),
            installation.direct(path, headers=accept),
        )
        boundaries = [a.headers["Content-Type"].split("boundary=")[1] for a in (proxied, original)]
        assert proxied.status_code == 200
        assert (
            proxied.content.replace(boundaries[0].encode(), boundaries[1].encode())
            == original.content
        )

    def test_of_metadata_works_with_the_search_address_too(
        self, installation: Installation
    ) -> None:
        entries = installation.get(
            f"qido/studies/{installation.study_of('second')}/metadata"
        ).json()
        assert {entry["00100020"]["Value"][0] for entry in entries} == {"second"}

    def test_of_an_unknown_object_is_404(self, installation: Installation) -> None:
        assert installation.get("wado/studies/1.2.3/metadata").status_code == 404


class TestCredentials:
    def test_of_this_server_are_sent_and_those_of_the_viewer_are_not(
        self, installation: Installation
    ) -> None:
        options = {"Authorization": "Basic d3Jvbmc6d3Jvbmc=", "Cookie": "a=b", "Host": "127.0.0.1"}
        answer = installation.get("qido/studies", headers=options)
        assert patients(answer) == set(PATIENTS)
        assert "WWW-Authenticate" not in answer.headers

    def test_that_the_pacs_refuses_are_not_requested_from_the_viewer(
        self, installation: Installation
    ) -> None:
        installation.pacs.kill()
        installation.pacs.users = {"label": "another"}
        installation.pacs.start()
        try:
            answer = installation.get("qido/studies")
        finally:
            installation.pacs.kill()
            installation.pacs.users = USERS
            installation.pacs.start()
        assert answer.status_code == 502
        assert "WWW-Authenticate" not in answer.headers
        assert "refuses this server's credentials" in answer.json()["detail"]
        assert "MONAI_LABEL_DICOMWEB_PASSWORD" in answer.json()["detail"]


class TestUnavailablePacs:
    def test_is_502_while_it_is_down_and_works_again_afterwards(
        self, installation: Installation
    ) -> None:
        installation.pacs.kill()
        try:
            answer = installation.get("qido/studies")
        finally:
            installation.pacs.start()
        assert answer.status_code == 502
        assert "cannot be reached" in answer.json()["detail"]
        assert "start it" in answer.json()["detail"]
        assert patients(installation.get("qido/studies")) == set(PATIENTS)

    def test_does_not_delay_other_requests_when_it_is_slow(
        self, installation: Installation
    ) -> None:
        assert installation.pacs.process is not None
        installation.pacs.process.send_signal(signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(60) as pool:
                url = f"{installation.server.url}/proxy/dicom/qido/studies"
                waiting = [pool.submit(requests.get, url, timeout=LIMIT_S) for _ in range(60)]
                # Many more than there are worker threads: if they blocked, the rest would never be answered.
                for _ in range(5):
                    assert installation.server.ask("GET", "/organnet/leases").status_code == 200
                assert not any(request.done() for request in waiting)
                installation.pacs.process.send_signal(signal.SIGCONT)
                assert {request.result().status_code for request in waiting} == {200}
        finally:
            installation.pacs.process.send_signal(signal.SIGCONT)


class TestOtherPartsOfThePacsAreNotReached:
    @pytest.mark.parametrize(
        "path",
        [
            "wado/../../system",
            "wado/studies/../../../system",
            "wado/%2e%2e/%2e%2e/system",
            "wado/studies%2f..%2f..%2fsystem",
            "wado/studies/1.2%2Fseries",
            "wado/studies/..%5c..",
            "wado//127.0.0.1:1/x",
            "wado/http://127.0.0.1:1/x",
            "wado/http:%2F%2F127.0.0.1:1",
            "wado/",
            "servers",
            "qido/system",
            "wado/studies/1.2?3",
            "wado/studies/%00",
            "wado/studies/@127.0.0.1",
            "wado/studies/1.2/./series",
            "wado/studies/" + "1" * 1000,
        ],
    )
    def test_by_a_path(self, installation: Installation, path: str) -> None:
        host = installation.server.url.removeprefix("http://")
        connection = HTTPConnection(host, timeout=LIMIT_S)
        connection.request("GET", f"/proxy/dicom/{path}")
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        assert answer.status in (400, 404), content

    @pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH"])
    def test_by_another_method(self, installation: Installation, method: str) -> None:
        path = f"/proxy/dicom/wado/studies/{installation.study_of('first')}"
        assert installation.server.ask(method, path).status_code == 405
        assert patients(installation.get("qido/studies")) == set(PATIENTS)

    def test_by_a_page_of_another_site(self, installation: Installation) -> None:
        answer = installation.get("qido/studies", headers={"Origin": "http://elsewhere.example"})
        assert answer.status_code == 403


def test_the_two_patients_have_different_studies(installation: Installation) -> None:
    """The patients that the tests above compare have different studies."""
    studies = [
        {pydicom.dcmread(p).StudyInstanceUID for p in installation.slices(n)} for n in PATIENTS
    ]
    assert not studies[0] & studies[1]
