"""Connections on which no request begins are closed; those with a request in progress are not."""

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lib.server import slow_connections


class Protocol(H11Protocol):
    """A class of its own, so that the server of other tests stays as it is."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer after the whole body has arrived."""
    while (await receive()).get("more_body"):
        pass
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})


def test_only_a_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_connections, "HEADERS_S", 0.2)
    monkeypatch.setattr(slow_connections, "_PROTOCOLS", (Protocol,))
    slow_connections.close_slow_connections()
    asyncio.run(_check())


async def _check() -> None:
    config = uvicorn.Config(app, port=0, http=Protocol, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    silent, slow, busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    slow[1].write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    busy[1].write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx")
    # The end of the two others proves that the checks have run while this request was in progress.
    assert await silent[0].read() == b""
    assert await slow[0].read() == b""
    busy[1].write(b"y")
    assert (await busy[0].readline()).startswith(b"HTTP/1.1 200")
    for _, writer in (silent, slow, busy):
        writer.close()
    server.should_exit = True
    await serving
