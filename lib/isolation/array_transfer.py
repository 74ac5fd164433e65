"""Arrays that a reader sends to the server piece by piece, through memory that both share.

The reader writes each part of an array into the next part of the window (`transfer_window`), and tells so with
one byte through a socket. The server copies the part into memory of its own, which the reader cannot change
afterwards, and answers with one byte: the part of the window is free again. So both work at the same time.
"""

import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from lib.isolation.messages import remaining_s
from lib.isolation.transfer_window import PART_BYTES, PARTS, mapped

Array = np.ndarray[Any, np.dtype[Any]]
Arrived = Callable[[Array, int, int], None]
"""Called with an array, and the first and the end of those indices of its last axis that have just arrived."""

MAX_DIMENSIONS = 4
_STEP_BYTES = 2**22
"""Size of what arrives before `Arrived` is called; it stays in the processor's cache."""
_DTYPES = frozenset(
    np.dtype(name).str for name in ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8",
                                    "f2", "f4", "f8")
)  # fmt: skip


class ArrayTransferError(ValueError):
    """A description of an array is wrong, or the other side sent less or more than the array."""


class ArrayTooLargeError(ArrayTransferError):
    """The array is larger than the limit."""


class ArrayStream:
    """The array of a task, which the reader may send before its result is known.

    Args:
        announce: Sends a description to the server.
        signals: The socket beside the window.
        window: Descriptor of the window.
    """

    def __init__(
        self, announce: Callable[[Mapping[str, Any]], None], signals: socket.socket, window: int
    ) -> None:
        self._announce = announce
        self._signals = signals
        self._window = mapped(window, writable=True)
        self._free_parts = PARTS
        self._part = self._filled_bytes = self._missing_bytes = 0

    def begin(self, shape: Sequence[int], dtype: "np.dtype[Any]") -> None:
        """Announce an array; its voxels follow with `write` or `parts`, first axis fastest."""
        self.pad()
        self._announce({"shape": list(shape), "dtype": dtype.str})
        self._missing_bytes = math.prod(shape) * dtype.itemsize

    def write(self, values: Array) -> None:
        """Send the next voxels: an array in C order whose last axis is the first of the whole array.

        Raises:
            ArrayTransferError: If they are more than were announced, or the server has ended.
        """
        content = memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        if len(content) > self._missing_bytes:
            raise ArrayTransferError(f"{len(content)} bytes, {self._missing_bytes} are missing")
        while content:
            part = self._next_part()
            size = min(len(part), len(content))
            part[:size] = content[:size]
            self._send(size)
            content = content[size:]

    def parts(self) -> Iterator[memoryview]:
        """Yield memory for the next voxels; what was put there is sent when the next is asked for.

        Raises:
            ArrayTransferError: If the server has ended.
        """
        while self._missing_bytes:
            part = self._next_part()
            yield part
            self._send(len(part))

    def pad(self) -> None:
        """Complete an array that another one replaces."""
        for part in self.parts():
            part[:] = bytes(len(part))

    def send(self, array: Array) -> None:
        """Send a whole array."""
        self.begin(array.shape, array.dtype)
        self.write(array.reshape(-1, order="F"))

    def _next_part(self) -> memoryview:
        """Return the memory of a part of the window that is not filled yet, once the server has left it."""
        while not self._free_parts:
            answers = self._signals.recv(PARTS)
            if not answers:
                raise ArrayTransferError("the server has ended")
            self._free_parts += len(answers)
        start = self._part * PART_BYTES + self._filled_bytes
        return self._window[start:][: min(PART_BYTES - self._filled_bytes, self._missing_bytes)]

    def _send(self, size: int) -> None:
        """Count `size` bytes as written, and give the part to the server if it is full."""
        self._filled_bytes += size
        self._missing_bytes -= size
        if self._filled_bytes == PART_BYTES or not self._missing_bytes:
            self._signals.sendall(b"\0")
            self._free_parts -= 1
            self._part = (self._part + 1) % PARTS
            self._filled_bytes = 0


def parts_of(array: Array) -> Iterator[memoryview]:
    """Yield the memory of an array in Fortran order piece by piece, as `ArrayStream.parts`."""
    flat = memoryview(array.reshape(-1, order="A").view(np.uint8))  # type: ignore[arg-type]
    for start in range(0, len(flat), PART_BYTES):
        yield flat[start : start + PART_BYTES]


class ArrayReceiver:
    """The arrays of one reader, on the side of the server.

    Args:
        signals: The socket beside the window.
        window: Descriptor of the window.
        limit_bytes: Largest size of an array.
        deadline: Moment of `time.monotonic()` at which all must have arrived.
    """

    def __init__(
        self, signals: socket.socket, window: int, *, limit_bytes: int, deadline: float
    ) -> None:
        self._signals = signals
        self._window = mapped(window, writable=False)
        self._limit_bytes = limit_bytes
        self._deadline = deadline
        self._part = 0

    def receive(self, description: Any, arrived: Arrived | None = None) -> Array:
        """Return the array that the reader sends, in Fortran order.

        Args:
            description: `shape` and `dtype`, from a process that is not trusted.
            arrived: Called while the array arrives, for each of its voxels once.

        Raises:
            ArrayTooLargeError: If it is larger than the limit.
            ArrayTransferError: If the description is wrong, or the reader ends before all voxels arrived.
            TimeoutError: If they have not arrived at the deadline.
        """
        shape, dtype = _checked(description)
        size = math.prod(shape) * dtype.itemsize
        if size > self._limit_bytes:
            raise ArrayTooLargeError(f"{shape} voxels of {dtype}, more than {self._limit_bytes}")
        flat = np.empty(math.prod(shape), dtype)
        array = flat.reshape(shape, order="F")
        bytes_per_index = size // shape[-1]
        step = max(1, _STEP_BYTES // bytes_per_index)
        seen = 0
        for count in self._filled(memoryview(flat.view(np.uint8))):  # type: ignore[arg-type]
            whole = count // bytes_per_index
            if arrived is not None and (whole - seen >= step or whole == shape[-1]):
                arrived(array, seen, whole)
                seen = whole
        return array

    def stop(self) -> None:
        """End the transfer: the reader can send nothing more."""
        self._signals.shutdown(socket.SHUT_RDWR)

    def _filled(self, memory: memoryview) -> Iterator[int]:
        """Fill memory, and yield the number of bytes that are there, whenever there are more."""
        received = 0
        while received < len(memory):
            missing_parts = -(-(len(memory) - received) // PART_BYTES)
            self._signals.settimeout(remaining_s(self._deadline))
            try:
                full = len(self._signals.recv(min(PARTS, missing_parts)))
            except ConnectionError:
                full = 0
            if not full:
                raise ArrayTransferError(f"{received} bytes of {len(memory)}")
            for _ in range(full):
                size = min(PART_BYTES, len(memory) - received)
                start = self._part * PART_BYTES
                memory[received : received + size] = self._window[start : start + size]
                received += size
                self._part = (self._part + 1) % PARTS
            with suppress(ConnectionError):  # the reader has sent all, and ended
                self._signals.sendall(bytes(full))
            yield received


def _checked(description: Any) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    if not isinstance(description, dict):
        raise ArrayTransferError("no description of an array")
    shape, dtype = description.get("shape"), description.get("dtype")
    is_shape = (
        isinstance(shape, list)
        and 1 <= len(shape) <= MAX_DIMENSIONS
        and all(type(side) is int and 1 <= side < 2**31 for side in shape)
    )
    is_type = isinstance(dtype, str) and dtype in _DTYPES
    if not isinstance(shape, list) or not is_shape or not is_type:
        raise ArrayTransferError(f"shape {str(shape)[:80]}, type {str(dtype)[:20]}")
    return tuple(shape), np.dtype(dtype)
