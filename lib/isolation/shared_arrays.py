"""Arrays in memory that a reader fills and the server then maps, without a copy and without a file.

The memory is that of memfd_create(2). The server seals its size before it maps it, so that no process can make
the mapping invalid, and maps it privately: what the server changes stays its own.
"""

import fcntl
import math
import mmap
import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

MAX_DIMENSIONS = 4
_COPIED_BYTES = 4 * 2**20
"""Size up to which an array is copied: a mapping keeps a file open and takes a page at least."""
_DTYPES = frozenset(
    np.dtype(name).str for name in ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8",
                                    "f2", "f4", "f8")
)  # fmt: skip
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class SharedArrayError(ValueError):
    """A description of an array is wrong, or does not fit its memory."""


class SharedMemory:
    """Memory of a reader for the one array that it returns."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("organnet-voxels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._array: Array | None = None

    def new_array(self, shape: Sequence[int], dtype: Any) -> Array:
        """Return an array of zeros in the shared memory, first axis fastest (Fortran order).

        An earlier array of this memory must not be used any more.

        Raises:
            MemoryError: If it is larger than the limit of this process.
        """
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        try:
            os.ftruncate(self.descriptor, 0)
            os.ftruncate(self.descriptor, size)
        except OSError as error:
            raise MemoryError(f"{size} bytes of shared memory") from error
        memory = mmap.mmap(self.descriptor, size) if size else bytearray()
        self._array = np.frombuffer(memory, dtype).reshape(shape, order="F")
        return self._array

    def share(self, array: Array) -> dict[str, Any]:
        """Put an array into the shared memory, unless it is there already; return its description."""
        shared = self._array
        if not (
            shared is not None
            and shared.ctypes.data == array.ctypes.data
            and (shared.shape, shared.dtype) == (array.shape, array.dtype)
            and array.flags.f_contiguous
        ):
            if shared is not None and np.may_share_memory(shared, array):
                array = array.copy()
            self.new_array(array.shape, array.dtype)[...] = array
        return {"shape": list(array.shape), "dtype": array.dtype.str}


def open_array(descriptor: int, description: Any, *, limit_bytes: int) -> Array:
    """Return the array that a reader shared; writable, in Fortran order.

    Args:
        descriptor: The shared memory; closed in any case.
        description: As `SharedMemory.share` returns it, from a process that is not trusted.
        limit_bytes: Largest size accepted.

    Raises:
        SharedArrayError: If the description is wrong, or the memory has another size.
    """
    try:
        shape, dtype = _checked(description)
        size = math.prod(shape) * dtype.itemsize
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size or size > limit_bytes:
            raise SharedArrayError(f"{status.st_size} bytes of memory, {size} expected")
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        if os.fstat(descriptor).st_size != size:
            raise SharedArrayError("the memory has changed its size")
        if size <= _COPIED_BYTES:
            flat = np.empty(math.prod(shape), dtype)
            if os.preadv(descriptor, [flat.view(np.uint8)], 0) != size:  # type: ignore[list-item]
                raise SharedArrayError("the memory cannot be read")
        else:
            memory = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            flat = np.frombuffer(memory, dtype)
    except OSError as error:
        raise SharedArrayError(f"not shared memory: {error}") from error
    finally:
        os.close(descriptor)
    return flat.reshape(shape, order="F")


def _checked(description: Any) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    if not isinstance(description, dict):
        raise SharedArrayError("no description of an array")
    shape, dtype = description.get("shape"), description.get("dtype")
    is_shape = (
        isinstance(shape, list)
        and 1 <= len(shape) <= MAX_DIMENSIONS
        and all(type(side) is int and 1 <= side < 2**31 for side in shape)
    )
    if not isinstance(shape, list) or not is_shape or dtype not in _DTYPES:
        raise SharedArrayError(f"shape {str(shape)[:80]}, type {str(dtype)[:20]}")
    return tuple(shape), np.dtype(dtype)
