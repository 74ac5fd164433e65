"""Closing of connections whose request never begins: uvicorn waits for the end of the headers without a limit.

A client that opens connections and sends a byte now and then would hold one file of the server for each, until
no other client is let in ("slow loris"). Bodies that do not arrive are answered by `lib.server.middleware`.
"""

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 30.0
"""Time in which the headers of a request must be complete, in seconds; at most twice this time is given."""

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # httptools is not installed
    _PROTOCOLS: tuple[type[Any], ...] = (H11Protocol,)
else:
    _PROTOCOLS = (H11Protocol, HttpToolsProtocol)


def close_slow_connections() -> None:
    """Let every connection of this process that is made from now on be closed if no request begins on it."""
    for protocol in _PROTOCOLS:
        _watch_connections(protocol)


def _watch_connections(protocol: type[Any]) -> None:
    connection_made = protocol.connection_made

    def made(self: Any, transport: Any) -> None:
        connection_made(self, transport)
        self.loop.call_later(HEADERS_S, _close_if_waiting, self, None)

    protocol.connection_made = made


def _close_if_waiting(connection: Any, last_request: Any) -> None:
    """Close a connection on which no request has begun since the last check; else check again later.

    Args:
        connection: The connection; its `cycle` is the last request whose headers are complete.
        last_request: That request at the last check.
    """
    if connection.transport.is_closing():
        return
    request = connection.cycle
    is_waiting = request is None or request.response_complete
    if is_waiting and request is last_request:
        connection.transport.close()
    else:
        connection.loop.call_later(HEADERS_S, _close_if_waiting, connection, request)
