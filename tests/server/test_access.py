"""Access control, and names that must not lead out of the folders (DESIGN section 4, defects 11 and 12)."""

import asyncio
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lib.imaging.scans import write_ct, write_label
from lib.server.access import runs_here
from lib.server.middleware import AccessGuard, BodyLimit
from tests.server.bad_scans import series
from tests.server.running import APP, Server, put_case, small_ct, two_organs

ESCAPES = ["../app/main", "..", "/etc/passwd", "a/../../b", "..\\b", ".hidden", "a\x00b", "%2e%2e/b",
           "labels/final/x", "x" * 300, ""]  # fmt: skip

REFUSED = (400, 404)
"""NUL is malformed (400); other names do not exist (404)."""


@pytest.fixture
def scan(tmp_path: Path) -> bytes:
    path = tmp_path / "sent.nii.gz"
    write_ct(path, small_ct())
    return path.read_bytes()


@pytest.fixture
def label(tmp_path: Path) -> bytes:
    path = tmp_path / "label.nii.gz"
    write_label(path, two_organs(small_ct().grid))
    return path.read_bytes()


@pytest.fixture
def unchanged(server: Server) -> Iterator[None]:
    put_case(server, "guarded", is_labelled=True)
    assert "guarded" in server.images()
    before = server.disk()
    app = {path: path.read_bytes() for path in (*APP.glob("lib/**/*.py"), APP / "main.py")}
    yield
    assert server.disk() == before
    assert {path: path.read_bytes() for path in app} == app


@pytest.mark.server
@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", [name for name in ESCAPES if name])
class TestNamesThatLeaveTheFolder:
    def test_are_refused_for_an_uploaded_image(
        self, server: Server, scan: bytes, name: str
    ) -> None:
        sent = {"file": ("a.nii.gz", scan)}
        answer = server.ask("PUT", "/datastore/", params={"image": name}, files=sent)
        assert answer.status_code in REFUSED, answer.text

    def test_are_refused_for_a_requested_image(self, server: Server, name: str) -> None:
        for path in ("/datastore/image", "/datastore/image/info"):
            assert server.ask("GET", path, params={"image": name}).status_code in REFUSED
        answer = server.ask("POST", "/infer/organnet25d", params={"image": name})
        assert answer.status_code in REFUSED
        assert server.ask("DELETE", "/datastore/", params={"id": name}).status_code in REFUSED

    def test_are_refused_for_the_image_or_tag_of_a_label(
        self, server: Server, label: bytes, name: str
    ) -> None:
        sent = {"label": ("a.nii.gz", label)}
        for params in ({"image": name}, {"image": "guarded", "tag": name}):
            answer = server.ask("PUT", "/datastore/label", params=params, files=sent)
            assert answer.status_code in REFUSED, answer.text
        params = {"label": "guarded", "tag": name}
        assert server.ask("GET", "/datastore/label", params=params).status_code in REFUSED
        params = {"id": "guarded", "tag": name}
        assert server.ask("DELETE", "/datastore/label", params=params).status_code in REFUSED

    def test_are_refused_for_the_tag_of_an_infer(self, server: Server, name: str) -> None:
        form = {"params": json.dumps({"save_label": True, "label_tag": name})}
        answer = server.ask("POST", "/infer/organnet25d?image=guarded", data=form)
        assert answer.status_code in REFUSED, answer.text

    def test_are_refused_for_a_session(self, server: Server, name: str) -> None:
        answer = server.ask("POST", "/infer/organnet25d", params={"session_id": name})
        assert answer.status_code in REFUSED
        for method in ("GET", "DELETE"):
            # A client resolves dots before it sends a path, so they are sent encoded here.
            quoted = quote(name, safe="").replace(".", "%2E")
            connection = HTTPConnection(server.url.removeprefix("http://"))
            connection.request(method, f"/session/{quoted}")
            assert connection.getresponse().status in (*REFUSED, 405)
            connection.close()


@pytest.mark.server
@pytest.mark.usefixtures("unchanged")
def test_infer_reads_no_file_of_the_server(server: Server, tmp_path: Path, scan: bytes) -> None:
    (tmp_path / "private.nii.gz").write_bytes(scan)
    path = str(tmp_path / "private.nii.gz")
    for params in ({"image": path}, {"scan": path}, {"image": "/guarded"}):
        answer = server.ask(
            "POST",
            "/infer/organnet25d",
            params={"image": path},
            data={"params": json.dumps(params)},
        )
        assert answer.status_code == 404
    form = {"params": json.dumps({"image": path, "scan": path, "session": {"image": path}})}
    answer = server.ask("POST", "/infer/organnet25d?image=none", data=form)
    assert answer.status_code == 404


@pytest.mark.server
def test_paths_in_a_training_request_are_ignored(server: Server, tmp_path: Path) -> None:
    posted = {"name": "../../x", "train_ds": "/etc", "val_ds": "/etc", "tracking_uri": "http://x",
              "gpus": "0; rm", "bundle_path": str(tmp_path), "seed": "none"}  # fmt: skip
    answer = server.ask("POST", "/train/organnet25d", json=posted)
    assert answer.status_code == 400
    assert "seed" in answer.json()["detail"]


@pytest.mark.server
def test_zip_cannot_write_outside_its_folder(server: Server, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, path in enumerate(series(tmp_path / "series")):
            archive.write(path, f"../../../escaped_{number}.dcm")
    before = server.disk()
    answer = server.ask("PUT", "/session/", files=[("files", ("s.zip", packed.getvalue()))])
    assert answer.status_code == 200, answer.text
    session_id = answer.json()["session_id"]
    assert not list(tmp_path.rglob("escaped*"))
    assert not list(server.studies.parent.rglob("escaped*"))
    assert server.ask("DELETE", f"/session/{session_id}").status_code == 200
    assert server.disk() == before


@pytest.mark.server
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/reload"),
        ("GET", "/model/organnet25d"),
        ("PUT", "/model/organnet25d"),
        ("DELETE", "/model/organnet25d"),
        ("POST", "/infer/wsi/organnet25d"),
        ("POST", "/batch/infer/organnet25d"),
        ("POST", "/scoring/dice"),
        ("GET", "/logs/"),
        ("GET", "/datastore/dataset"),
        ("GET", "/proxy/dicom/qido/studies"),
    ],
)
def test_unneeded_risky_routes_are_removed(server: Server, method: str, path: str) -> None:
    assert server.ask(method, path).status_code in (404, 405)


@pytest.mark.server
def test_requests_from_pages_of_other_sites_are_refused(server: Server) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = server.ask("GET", "/info/", headers={"Origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}
    answer = server.ask("OPTIONS", "/datastore/", headers=preflight)
    assert answer.status_code == 403
    own = server.ask("GET", "/info/", headers={"Origin": server.url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


@pytest.mark.server
def test_unknown_host_name_of_this_machine_is_refused(server: Server) -> None:
    answer = server.ask("GET", "/info/", headers={"Host": "evil.example"})
    assert answer.status_code == 403
    assert "--conf access network" in answer.json()["detail"]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the number of bytes sent."""
    size, is_more = 0, True
    while is_more:
        message = await receive()
        size += len(message["body"])
        is_more = message["more_body"]
    await PlainTextResponse(str(size))(scope, receive, send)


def status_of(
    app: ASGIApp, peer: str = "127.0.0.1", pieces: Sequence[bytes] = (b"",), **headers: str
) -> int:
    """Return the status of one request to a guard, without a network."""
    statuses: list[int] = []
    body = [{"type": "http.request", "body": p, "more_body": True} for p in pieces]
    body[-1]["more_body"] = False
    scope = {"type": "http", "method": "PUT", "path": "/", "client": (peer, 50000), "query_string": b"",
             "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]}  # fmt: skip

    async def receive() -> Any:
        return body.pop(0)

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def run() -> None:
        await app(scope, receive, send)

    asyncio.run(run())
    return statuses[0]


LOCAL = AccessGuard(echo, access="local")
NETWORK = AccessGuard(echo, access="network", origins=["https://viewer.example"])


def test_another_machine_has_access_only_with_network_access() -> None:
    assert status_of(LOCAL, "192.0.2.7", host="localhost:8000") == 403
    assert status_of(NETWORK, "192.0.2.7", host="clinic.example") == 200


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1"])
def test_this_machine_has_access_under_its_own_name(peer: str) -> None:
    assert status_of(LOCAL, peer, host="localhost:8000") == 200
    assert status_of(LOCAL, peer, host="[::1]:8000") == 200
    assert status_of(LOCAL, peer, host="clinic.example") == 403


@pytest.mark.parametrize(
    ("peer", "headers", "is_here"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("192.0.2.7", {}, False),
        ("127.0.0.1", {"x-forwarded-for": "192.0.2.7"}, False),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7"}, False),
    ],
)
def test_a_client_runs_here_unless_a_proxy_sends_its_request(
    peer: str, headers: dict[str, str], *, is_here: bool
) -> None:
    fields = [(key.encode(), value.encode()) for key, value in headers.items()]
    request = Request({"type": "http", "client": (peer, 50000), "headers": fields})
    assert runs_here(request) is is_here


def test_a_page_of_a_listed_site_has_access() -> None:
    assert status_of(NETWORK, host="a.example", origin="https://viewer.example") == 200
    assert status_of(NETWORK, host="a.example", origin="https://other.example") == 403


def test_a_request_larger_than_the_limit_is_refused() -> None:
    limited = BodyLimit(echo, limit_bytes=1000, text_limit_bytes=1000)
    assert status_of(limited, pieces=[b"x" * 1000]) == 200
    assert status_of(limited, content_length="1001") == 413
    with pytest.raises(HTTPException, match="limit of 0 MiB"):
        status_of(limited, pieces=[b"x" * 600, b"x" * 401])
