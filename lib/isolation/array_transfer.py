"""Arrays that a reader sends to the server through a socket.

The server receives into memory of its own, which no other process can change afterwards. For 100 MiB this takes
a third of the time of shared memory, whose pages of 4 KiB the kernel provides one by one; large private arrays
have huge pages (docs/adr/0028-reader-processes.md).
"""

import math
import socket
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MAX_DIMENSIONS = 4
_CHUNK_BYTES = 2**20
_DTYPES = frozenset(
    np.dtype(name).str for name in ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8",
                                    "f2", "f4", "f8")
)  # fmt: skip


class ArrayTransferError(ValueError):
    """A description of an array is wrong, or not all of the array arrived."""


def describe(array: Array) -> dict[str, Any]:
    """Return shape and type of an array as a JSON object."""
    return {"shape": list(array.shape), "dtype": array.dtype.str}


def send_array(connection: socket.socket, array: Array) -> None:
    """Send the voxels of an array, first axis fastest."""
    connection.sendall(memoryview(array.reshape(-1, order="F").view(np.uint8)))  # type: ignore[arg-type]


def receive_array(connection: socket.socket, description: Any, *, limit_bytes: int) -> Array:
    """Return the array that a reader sends, in Fortran order.

    Args:
        connection: As in `send_array`.
        description: Result of `describe`, from a process that is not trusted.
        limit_bytes: Largest size accepted.

    Raises:
        ArrayTransferError: If the description is wrong, or fewer voxels arrive.
        TimeoutError: If none arrive within the timeout of the socket.
    """
    shape, dtype = _checked(description)
    if math.prod(shape) * dtype.itemsize > limit_bytes:
        raise ArrayTransferError(f"{shape} voxels of {dtype}, more than {limit_bytes} bytes")
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
