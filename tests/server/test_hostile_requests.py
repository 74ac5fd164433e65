"""Hostile and malformed requests: each is answered at once, with a reason, and never with a bare 500."""

import http.client
import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.server.running import Server, put_case
from tests.waiting import LIMIT_S
from tools.openapi import DEFAULT_OUTPUT

pytestmark = pytest.mark.server

SCHEMA: dict[str, Any] = json.loads(DEFAULT_OUTPUT.read_text())
STARTS_A_TRAINING = {("post", "/train/"), ("post", "/train/{model}")}
VALID = {"image": "hostile", "label": "hostile", "id": "nobody", "tag": "final", "model": "organnet25d",
         "strategy": "random", "number": "1", "version": "1", "output": "json", "format": "nrrd",
         "session_id": "00000000-0000-1000-8000-000000000000"}  # fmt: skip

VALUES = {
    "NUL": b"a\0b",
    "a path": b"../../etc/passwd",
    "not UTF-8": b"\xff\xfe",
    "a lone surrogate": "\ud800".encode("utf-8", "surrogatepass"),
    "characters of control": b"a\r\nSet-Cookie: x=y",
    "right-to-left text": "\u202eabc\U0001f642".encode(),
    "a very long text": b"a" * 20_000,
    "a large number": b"9" * 30,
    "a number of 5,000 digits": b"9" * 5000,
    "a negative number": b"-1",
    "infinity": b"1e999",
    "nothing": b"",
    "JSON": b'{"a": [1]}',
}
BODIES = {
    "cut": '{"seed": ',
    "a list": "[]",
    "null in a list": "[null]",
    "a number": "1",
    "text": '"x"',
    "100,000 lists": "[" * 100_000,
    "5,000 objects": '{"a":' * 5000 + "1" + "}" * 5000,
    "101 objects": '{"client_id":' * 101 + "1" + "}" * 101,
    "NaN": "NaN",
    "NaN as a value": '{"seed": NaN, "minutes": NaN, "min_new_labels": NaN, "readers": NaN}',
    "an infinite number": '{"seed": 1e999, "minutes": 1e999, "min_new_labels": 1e999, "readers": 1e999}',
    "a number of 5,000 digits": '{"readers": ' + "9" * 5000 + "}",
    "a key twice": '{"seed": 1, "seed": 2}',
    "a lone surrogate": '"\\ud800"',
    "a lone surrogate as a key": '{"\\ud800": 1}',
    "a lone surrogate as a value": '{"client_id": "\\udfff", "seed": "\\udfff", "readers": "\\udfff"}',
    "a lone surrogate in a list": '{"client_id": [["\\ud800"]]}',
    "NUL": '{"client_id": "a\\u0000b"}',
    "no UTF-8": b"\xff\xfe{".decode("latin-1"),
    "text behind it": "{} x",
}
REFUSED_BODIES = set(BODIES) - {"a list", "null in a list", "a number", "text"}
"""Bodies that are not strict JSON; the others have only a wrong type."""


def answer_to(server: Server, request: bytes) -> tuple[int, str]:
    """Return status and body of the answer to a request that is sent as it stands."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read().decode()


def require_reason(status: int, text: str, request: str) -> None:
    """Check that an answer is no failure, and that a refusal states its reason."""
    assert status < 500, f"{request}: {status} {text}"
    assert "Traceback" not in text, request
    if status >= 400:
        assert json.loads(text)["detail"], request


def operations(media_type: str | None = None) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield method, path and parameters of each operation, of those with a body of a media type if given."""
    for path, item in SCHEMA["paths"].items():
        for method, operation in item.items():
            if (method, path) in STARTS_A_TRAINING and media_type is None:
                continue
            if media_type is None or media_type in operation.get("requestBody", {}).get(
                "content", ()
            ):
                parameters = [p for p in operation.get("parameters", ()) if p["name"] != "token"]
                yield method.upper(), path, parameters


def address(path: str, parameters: list[dict[str, Any]], changed: dict[str, bytes]) -> str:
    """Return path and query with a valid value of each parameter, but for the changed ones."""
    query = []
    for parameter in parameters:
        name = parameter["name"]
        if name in changed or name in VALID:
            value = quote(changed.get(name, VALID.get(name, "").encode()), safe="")
            if parameter["in"] == "path":
                path = path.replace(f"{{{name}}}", value)
            else:
                query.append(f"{name}={value}")
    return f"{path}?{'&'.join(query)}"


@pytest.fixture(scope="module", autouse=True)
def case(server: Server) -> None:
    put_case(server, "hostile", is_labelled=True)


@pytest.fixture
def unchanged(server: Server) -> Iterator[None]:
    before = server.disk()
    yield
    assert server.disk() == before
    assert server.ask("GET", "/info/").status_code == 200


HEADS = [
    ("Host: [", 400, "Host header"),
    ("Host: [::1", 400, "Host header"),
    ("Host: [::1]]", 400, "Host header"),
    ("Host: [1:2]", 400, "Host header"),
    ("Host: a b", 400, "Host header"),
    ("Host: a/b", 400, "Host header"),
    ("Host: localhost:99999", 400, "Host header"),
    ("Host: localhost:x", 400, "Host header"),
    ("Host: me@localhost", 400, "Host header"),
    ("Host: \xfc", 400, "Host header"),
    ("Host: clinic.example", 403, "own machine only"),
    ("Host: ", 403, "own machine only"),
    ("Host: LOCALHOST", 200, "OrganNet"),
    ("Host: [::1]:80", 200, "OrganNet"),
    ("Origin: http://[", 403, "another site"),
    ("Origin: http://[::1", 403, "another site"),
    ("Origin: \xff", 403, "another site"),
    ("Content-Length: 99999999999999999999", 413, "limit of 4 MiB"),
    ("Content-Length: x", 400, "Invalid HTTP request"),
    ("Content-Length: -1", 400, "Invalid HTTP request"),
    ("Content-Length: 1\r\nContent-Length: 2", 400, "Invalid HTTP request"),
    ("Transfer-Encoding: gzip", 400, "Invalid HTTP request"),
    ("Upgrade: websocket\r\nSec-WebSocket-Version: 13", 200, "OrganNet"),
    ("Cookie: \xff=\xfe; ;;; =", 200, "OrganNet"),
    ("Accept: " + "*/*," * 5000, 200, "OrganNet"),
    ("Authorization: Bearer \xff", 200, "OrganNet"),
]


@pytest.mark.parametrize(("head", "status", "says"), HEADS, ids=lambda value: repr(value)[:40])
def test_a_malformed_header_is_refused_with_a_reason(
    server: Server, head: str, status: int, says: str
) -> None:
    host = "" if head.startswith("Host") else "Host: localhost\r\n"
    request = f"GET /info/ HTTP/1.1\r\n{host}{head}\r\nConnection: close\r\n\r\n"
    found, text = answer_to(server, request.encode("latin-1"))
    assert found == status, text
    assert says in text


LINES = ["FOO /info/", "TRACE /info/", "CONNECT a:1", "GET http://a/info/", "OPTIONS *", "GET /info/%00",
         "GET /static/%ff", "GET /static/..%2f..%2fmain.py", "GET /" + "a" * 50_000, "GET //evil.example/",
         "GET /info/?a=1&a=2"]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:30])
def test_an_unknown_address_or_method_is_refused_with_a_reason(server: Server, line: str) -> None:
    request = f"{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    status, text = answer_to(server, request.encode())
    assert status in (400, 404, 405), text
    require_reason(status, text, line)


@pytest.mark.usefixtures("unchanged")
def test_every_parameter_of_every_route_refuses_hostile_values(server: Server) -> None:
    for method, path, parameters in operations():
        for parameter, value in itertools.product(parameters, VALUES.values()):
            asked = address(path, parameters, {parameter["name"]: value})
            answer = server.ask(method, asked)
            text = answer.text or json.dumps({"detail": "HEAD"})
            require_reason(answer.status_code, text, f"{method} {asked[:200]}")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", BODIES)
def test_every_route_with_json_refuses_a_hostile_body(server: Server, name: str) -> None:
    body = BODIES[name].encode("latin-1")
    for method, path, parameters in operations("application/json"):
        asked = address(path, parameters, {})
        for media_type in (b"application/json", b"text/plain", b"multipart/form-data", b"\xff"):
            answer = server.ask(method, asked, data=body, headers={"Content-Type": media_type})
            require_reason(answer.status_code, answer.text, f"{method} {path} {media_type!r}")
            is_strict = name in REFUSED_BODIES and media_type == b"application/json"
            assert answer.status_code in ((400,) if is_strict else (400, 422)), path


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", BODIES)
def test_every_form_refuses_hostile_json(server: Server, name: str) -> None:
    body = BODIES[name].encode("latin-1")
    for media_type in ("multipart/form-data", "application/x-www-form-urlencoded"):
        for method, path, parameters in operations(media_type):
            if path == "/session/":
                continue
            fields = {"params": body, "info": body}
            files = {"file": ("x.nii.gz", b""), "label": ("x.nii.gz", b"")}
            sent: dict[str, Any] = {"files": files} if media_type.startswith("multipart") else {}
            answer = server.ask(method, address(path, parameters, {}), data=fields, **sent)
            require_reason(answer.status_code, answer.text, f"{method} {path}")
            assert answer.status_code == 400, answer.text


def part(head: bytes, content: bytes = b"x") -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + content + b"\r\n"


END = b"--b--\r\n"
A_FILE = b'name="file"; filename="a.nii.gz"'
FORMS = {
    "an empty body": (b"", "ends before its last part"),
    "NULs": (bytes(1000), "not a multipart message"),
    "no end": (part(A_FILE), "ends before its last part"),
    "no name": (part(b"x=y") + END, "no name"),
    "no file name": (part(b'name="file"') + END, "a part of the form with a file name"),
    "a wrong name": (part(b'name="other"; filename="a.nii.gz"') + END, "Field required"),
    "an empty file name": (part(b'name="file"; filename=""') + END, "not a readable"),
    "a path as file name": (part(b'name="file"; filename="../../a.nii.gz"') + END, "not a readable"),
    "NUL in the file name": (part(b'name="file"; filename="a\0.nii.gz"') + END, "not a readable"),
    "no UTF-8 in the file name": (part(b'name="file"; filename="\xed\xa0\x80.nii.gz"') + END, "not a readable"),
    "a long file name": (part(b'name="file"; filename="' + b"a" * 4000 + b'.nii.gz"') + END, "not a readable"),
    "a wrong suffix": (part(b'name="file"; filename="a.exe"') + END, "expected a file ending in"),
    "two files": (part(A_FILE) * 2 + END, "not a readable"),
    "111 parts": (part(b'name="a"; filename="b"') * 111 + END, "more than 110 parts"),
    "101 fields": (part(b'name="a"') * 101 + END, "more than 100 fields"),
    "10,000 headers": (part(A_FILE + b"\r\nX: y" * 10_000) + END, "not a multipart message"),
    "a long header": (part(A_FILE + b"\r\nX: " + b"y" * 100_000) + END, "not a multipart message"),
    "a header without a colon": (part(A_FILE + b"\r\nX") + END, "not a multipart message"),
    "fields of 2 MiB": (part(b'name="params"', b"x" * 2**21) + part(A_FILE) + END, "exceed 1 MiB"),
    "parameters as a file": (part(b'name="params"; filename="p"') + part(A_FILE) + END, "valid string"),
}  # fmt: skip


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", FORMS)
def test_a_malformed_form_is_refused_with_a_reason(server: Server, name: str) -> None:
    body, says = FORMS[name]
    answer = server.ask("PUT", "/datastore/?image=x", data=body,
                        headers={"Content-Type": "multipart/form-data; boundary=b"})  # fmt: skip
    assert answer.status_code in (400, 422), answer.text
    assert says in answer.text


BOUNDARIES = ["", "; boundary=", "; boundary=" + "x" * 5000, '; boundary="', "; boundary=\xff"]


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=lambda boundary: repr(boundary[:20]))
def test_a_form_with_a_malformed_boundary_is_refused(server: Server, boundary: str) -> None:
    media_type = f"multipart/form-data{boundary}".encode("latin-1")
    for path in ("/datastore/?image=x", "/session/", "/datastore/image/info?image=hostile"):
        answer = server.ask("PUT", path, data=b"--x--", headers={"Content-Type": media_type})
        require_reason(answer.status_code, answer.text, path)
        assert answer.status_code == 400


def test_answers_do_not_tell_paths_of_the_server(server: Server, tmp_path: Path) -> None:
    content = (server.studies / "hostile.nii.gz").read_bytes()
    made = server.ask("PUT", "/session/", files=[("files", ("a.nii.gz", content))])
    session = made.json()["session_id"]
    answers = [made, server.ask("GET", f"/session/{session}")]
    refused = server.ask("PUT", "/datastore/label?image=hostile", files={"label": ("a.nii", b"x")})
    assert refused.status_code == 422
    assert str(server.studies.parent) not in refused.text
    answers += [server.ask("DELETE", f"/session/{session}")]
    answers += [server.ask("GET", f"/datastore/?output={output}") for output in ("all", "train")]
    answers += [
        server.ask("GET", path) for path in ("/info/", "/organnet/status", "/organnet/labels")
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert str(server.studies.parent) not in answer.text, answer.url
