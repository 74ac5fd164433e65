"""Arrays that a reader sends to the server through a socket, at once or piece by piece while it reads.

The server receives into memory of its own, which no other process can change afterwards. For 100 MiB this takes
a third of the time of shared memory, whose pages of 4 KiB the kernel provides one by one; large private arrays
have huge pages (docs/adr/0028-reader-processes.md).
"""

import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MAX_DIMENSIONS = 4
_CHUNK_BYTES = 2**20
_PART_BYTES = 2**18
"""Size of a piece that a reader makes and sends; it stays in the processor's cache."""
_DTYPES = frozenset(
    np.dtype(name).str for name in ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8",
                                    "f2", "f4", "f8")
)  # fmt: skip


class ArrayTransferError(ValueError):
    """A description of an array is wrong, or not all of the array arrived."""


class ArrayTooLargeError(ArrayTransferError):
    """The array is larger than the limit."""


class ArrayStream:
    """The array of a task, which the reader may send before its result is known.

    Args:
        announce: Sends a description to the server.
        voxels: The stream for the voxels.
    """

    def __init__(
        self, announce: Callable[[Mapping[str, Any]], None], voxels: socket.socket
    ) -> None:
        self._announce = announce
        self._voxels = voxels
        self._missing_bytes = 0

    def begin(self, shape: Sequence[int], dtype: "np.dtype[Any]") -> None:
        """Announce an array; its voxels follow with `write` or `parts`, first axis fastest."""
        self.pad()
        self._announce({"shape": list(shape), "dtype": dtype.str})
        self._missing_bytes = math.prod(shape) * dtype.itemsize

    def write(self, values: Array) -> None:
        """Send the next voxels: an array in C order whose last axis is the first of the whole array."""
        content = memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        self._voxels.sendall(content)
        self._missing_bytes -= len(content)

    def parts(self) -> Iterator[memoryview]:
        """Yield memory for the next voxels; what was put there is sent when the next is asked for."""
        buffer = memoryview(bytearray(_PART_BYTES))
        while self._missing_bytes:
            part = buffer[: min(_PART_BYTES, self._missing_bytes)]
            yield part
            self._voxels.sendall(part)
            self._missing_bytes -= len(part)

    def pad(self) -> None:
        """Complete an array that another one replaces."""
        for part in self.parts():
            part[:] = bytes(len(part))

    def send(self, array: Array) -> None:
        """Send a whole array."""
        self.begin(array.shape, array.dtype)
        self.write(array.reshape(-1, order="F"))


def parts_of(array: Array) -> Iterator[memoryview]:
    """Yield the memory of an array in Fortran order piece by piece, as `ArrayStream.parts`."""
    flat = memoryview(array.reshape(-1, order="A").view(np.uint8))  # type: ignore[arg-type]
    for start in range(0, len(flat), _PART_BYTES):
        yield flat[start : start + _PART_BYTES]


def receive_array(connection: socket.socket, description: Any, *, limit_bytes: int) -> Array:
    """Return the array that a reader sends, in Fortran order.

    Args:
        connection: The stream of the voxels.
        description: `shape` and `dtype`, from a process that is not trusted.
        limit_bytes: Largest size accepted.

    Raises:
        ArrayTooLargeError: If it is larger.
        ArrayTransferError: If the description is wrong, or fewer voxels arrive.
        TimeoutError: If none arrive within the timeout of the socket.
    """
    shape, dtype = _checked(description)
    if math.prod(shape) * dtype.itemsize > limit_bytes:
        raise ArrayTooLargeError(f"{shape} voxels of {dtype}, more than {limit_bytes} bytes")
    array = np.empty(math.prod(shape), dtype)
    memory = memoryview(array.view(np.uint8))  # type: ignore[arg-type]
    received = 0
    while received < len(memory):
        count = connection.recv_into(memory[received : received + _CHUNK_BYTES])
        if not count:
            raise ArrayTransferError(f"{received} bytes of {len(memory)}")
        received += count
    return array.reshape(shape, order="F")


def _checked(description: Any) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    if not isinstance(description, dict):
        raise ArrayTransferError("no description of an array")
    shape, dtype = description.get("shape"), description.get("dtype")
    is_shape = (
        isinstance(shape, list)
        and 1 <= len(shape) <= MAX_DIMENSIONS
        and all(type(side) is int and 1 <= side < 2**31 for side in shape)
    )
    if not isinstance(shape, list) or not is_shape or dtype not in _DTYPES:
        raise ArrayTransferError(f"shape {str(shape)[:80]}, type {str(dtype)[:20]}")
    return tuple(shape), np.dtype(dtype)
