"""Checks of requests before any route, without a network; tests/server/test_access.py tests them with one."""

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from lib.server.middleware import BodyLimit, host_name


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("localhost:8000", "localhost"),
        ("127.0.0.1:", "127.0.0.1"),
        ("[::1]:65535", "[::1]"),
        ("[2001:db8::7]", "[2001:db8::7]"),
        ("a_b.clinic-1.example", "a_b.clinic-1.example"),
        ("", ""),
    ],
)
def test_host_name_is_read(header: str, name: str) -> None:
    assert host_name(header) == name


MALFORMED = ["[", "[::1", "[::1]]", "[x]", "[1:2]", "a:b", "a:65536", "a:123456", "a b", "a/b", "a@b",
             "a?b", "a#b", "a,b c", "\xfc", "\0", "::1", "a\n"]  # fmt: skip


@pytest.mark.parametrize("header", MALFORMED)
def test_malformed_host_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="Host header"):
        host_name(header)


async def read_all(_scope: Scope, receive: Receive, _send: Send) -> None:
    while (await receive()).get("more_body"):
        pass


def run(limit: BodyLimit, receive: Receive, media_type: bytes = b"application/json") -> None:
    async def send(_message: Message) -> None:
        pass

    scope = {"type": "http", "headers": [(b"content-type", media_type)]}
    asyncio.run(limit(scope, receive, send))


def test_a_body_that_does_not_arrive_is_answered_with_408() -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(HTTPException, match="did not arrive") as refused:
        run(BodyLimit(read_all, stall_s=0.01), never)
    assert refused.value.status_code == 408


def test_a_route_may_wait_for_the_end_of_the_connection() -> None:
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    run(BodyLimit(route, stall_s=0.01), receive)


def test_text_has_a_smaller_limit_than_files() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 50, "more_body": False}

    limit = BodyLimit(read_all, limit_bytes=100, text_limit_bytes=10)
    run(limit, receive, b"multipart/form-data; boundary=b")
    with pytest.raises(HTTPException, match="multipart/form-data") as refused:
        run(limit, receive)
    assert refused.value.status_code == 413
