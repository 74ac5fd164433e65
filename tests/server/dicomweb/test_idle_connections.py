"""Connections that the PACS closes while they are idle."""

import asyncio
from collections.abc import Iterator

import pytest

from lib.errors import PacsError
from lib.server.dicomweb import proxy_routes
from lib.server.dicomweb.source import Source

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answers(method: str) -> list[int]:
    """Send two requests to a PACS that answers one on each connection; return the statuses."""

    handled = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await writer.drain()
        # The client believes that it can use the connection again, until it does.
        await reader.read(1)
        writer.close()
        await writer.wait_closed()

    async def ask_twice() -> list[int]:
        server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        statuses = []
        async with server:
            try:
                for _ in range(2):
                    request = proxy_routes.client().build_request(method, f"http://{host}:{port}/x")
                    answer = await proxy_routes.send(request)
                    await answer.aread()
                    statuses.append(answer.status_code)
            finally:
                await proxy_routes.client().aclose()
                await asyncio.gather(*filter(None, handled), return_exceptions=True)
        return statuses

    return asyncio.run(ask_twice())


@pytest.fixture(autouse=True)
def own_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pacs = Source("http://127.0.0.1/dicom-web", None, {})
    monkeypatch.setattr(proxy_routes, "source", lambda: pacs)
    proxy_routes.client.cache_clear()
    yield
    proxy_routes.client.cache_clear()


def test_a_retrieval_is_sent_again() -> None:
    assert answers("GET") == [200, 200]


def test_objects_are_not_stored_twice() -> None:
    with pytest.raises(PacsError, match="cannot be reached"):
        answers("POST")
