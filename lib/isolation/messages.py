"""Messages between the server and its reader processes: JSON objects, with open files beside them."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

MAX_MESSAGE_BYTES = 120_000
"""Largest message; a Unix socket takes 200 KiB at once by default."""
_MAX_DESCRIPTORS = 4


class MessageError(ValueError):
    """A message is not a JSON object, or is too large."""


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep the borders of messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(
    connection: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()
) -> None:
    """Send a message, and copies of open files.

    Raises:
        MessageError: If it is too large.
        OSError: If the other side has ended.
    """
    content = json.dumps(message).encode()
    if len(content) > MAX_MESSAGE_BYTES:
        raise MessageError(
            f"a message of {len(content)} bytes; at most {MAX_MESSAGE_BYTES} expected"
        )
    socket.send_fds(connection, [content], list(descriptors))


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the next message and its open files; None if the other side has ended.

    Raises:
        MessageError: If it is not a JSON object. Its files are closed.
        TimeoutError: If none arrives within the timeout of the socket.
    """
    content, descriptors, _, _ = socket.recv_fds(
        connection, MAX_MESSAGE_BYTES + 1, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    if not content:
        return None, []
    try:
        message = json.loads(content)
        if not isinstance(message, dict):
            raise MessageError(f"a JSON object expected, found {type(message).__name__}")
    except (ValueError, RecursionError) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise MessageError(f"no JSON object: {error}") from error
    return message, descriptors


def remaining_s(deadline: float) -> float:
    """Return the time in s until a moment of `time.monotonic()`.

    Raises:
        TimeoutError: If it is over.
    """
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("the time is over")
    return remaining
