"""Bodies of requests: strict JSON, and forms that neither fill the memory nor keep files open."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException

from lib.server.bodies import StoredUpload, StrictRequest, StrictRoute, strict_json
from lib.server.monailabel_patches import ROUTERS


@pytest.mark.parametrize(
    "value", [{"a": [1, 2.5, None, True, "ü\U0001f642"]}, [], "x", 0, {"": {"": []}}]
)
def test_json_keeps_its_value(value: Any) -> None:
    for is_ascii in (True, False):
        assert strict_json(json.dumps(value, ensure_ascii=is_ascii)) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting"),
        ("NaN", "NaN is not valid"),
        ("[-Infinity]", "-Infinity is not valid"),
        ("1e999", "too large"),
        ("9" * 5000, "integer string"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        ('{"x": {"a": 1, "a": 1}}', "'a' is given twice"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ('[[["\\ud800x"]]]', "surrogate"),
        ('"a\\u0000"', "NUL"),
        ("[" * 101 + "]" * 101, "more than 100 deep"),
        ("[" * 100_000, "more than 100 deep"),
        (b'"\xff"', "codec"),
    ],
)
def test_ambiguous_json_is_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        strict_json(text)


def request_of(*chunks: bytes) -> StrictRequest:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return messages.pop(0)

    head = [(b"content-type", b"multipart/form-data; boundary=b")]
    request = StrictRequest({"type": "http", "method": "PUT", "headers": head}, receive)
    request.max_files = 1000
    return request


def form_of(count: int, content: bytes) -> Iterator[bytes]:
    for number in range(count):
        yield (
            f'--b\r\nContent-Disposition: form-data; name="files"; filename="{number}.dcm"\r\n\r\n'
        ).encode()
        yield content + b"\r\n"
    yield b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{}\r\n--b--\r\n'


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_files_of_a_form_are_on_disk_closed_and_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def read() -> None:
        before = open_files()
        form = await request_of(*form_of(300, b"x" * 1000)).form()
        assert open_files() == before
        files = form.getlist("files")
        assert [file.filename for file in files if isinstance(file, StoredUpload)] == [
            f"{number}.dcm" for number in range(300)
        ]
        assert all(
            isinstance(f, StoredUpload) and f.path.read_bytes() == b"x" * 1000 for f in files
        )
        assert form["params"] == "{}"
        await form.close()

    asyncio.run(read())
    assert list(tmp_path.iterdir()) == []


def test_nothing_remains_of_an_incomplete_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def read() -> None:
        await request_of(*list(form_of(3, b"x"))[:-1]).form()

    with pytest.raises(HTTPException, match="ends before its last part"):
        asyncio.run(read())
    assert list(tmp_path.iterdir()) == []


def test_every_route_of_a_client_is_strict() -> None:
    routes = [route for router in ROUTERS for route in router.routes]
    assert routes
    assert all(isinstance(route, StrictRoute) for route in routes)
