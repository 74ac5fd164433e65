"""The viewer over HTTP: its files, its page at each of its addresses, and no access outside its folder."""

from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.pacs.orthancs import orthanc
from tests.server.running import Server, running
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def over_pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("viewer")
    (folder / "server").mkdir()
    with (
        orthanc(folder / "orthanc") as pacs,
        running(folder / "server", studies=pacs.dicomweb_url) as server,
    ):
        yield server


@pytest.mark.parametrize(
    "path", ["", "index.html", "viewer?StudyInstanceUIDs=1.2", "monai-label", "segmentation"]
)
def test_every_address_of_the_viewer_returns_its_page(over_pacs: Server, path: str) -> None:
    answer = over_pacs.ask("GET", f"/ohif/{path}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "/ohif/organnet/hooks.js" in answer.text


def test_the_page_may_fetch_from_this_server_only(over_pacs: Server) -> None:
    rules = over_pacs.ask("GET", "/ohif/").headers["Content-Security-Policy"]
    assert "default-src 'self'" in rules
    assert "http" not in rules


def test_a_patched_file_is_not_sent_again_until_it_changes(over_pacs: Server) -> None:
    first = over_pacs.ask("GET", "/ohif/app.bundle.css")
    again = {"If-None-Match": first.headers["ETag"]}
    assert over_pacs.ask("GET", "/ohif/app.bundle.css", headers=again).status_code == 304
    other = {"If-None-Match": '"another"'}
    assert over_pacs.ask("GET", "/ohif/app.bundle.css", headers=other).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "missing.js",
        "../../proxy.py",
        "%2e%2e/%2e%2e/proxy.py",
        "..%2f..%2fproxy.py",
        "assets/..%2f..%2f..%2fproxy.py",
        "..%5c..%5cproxy.py",
        "/etc/ld.so.conf",
        "organnet/../viewer_routes.py",
        "organnet/..%2fviewer_routes.py",
    ],
)
def test_no_path_leads_out_of_the_viewers_folder(over_pacs: Server, path: str) -> None:
    connection = HTTPConnection(over_pacs.url.removeprefix("http://"), timeout=LIMIT_S)
    connection.request("GET", f"/ohif/{path}")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 404


def test_without_a_pacs_the_page_explains_that_it_needs_one(
    bare_server: Server, tmp_path: Path
) -> None:
    answer = bare_server.ask("GET", "/ohif/")
    assert answer.status_code == 404
    assert "--studies http://" in answer.json()["detail"]
    assert bare_server.ask("GET", "/proxy/dicom/qido/studies").status_code == 404
