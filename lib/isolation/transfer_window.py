"""Memory that the server and one reader share: the window through which arrays travel, part by part.

The server makes the window and seals its size, so that no process can cut it: access to it never fails. It is
new for each reader, which therefore never sees voxels of another file.
"""

import errno
import fcntl
import mmap
import os

PART_BYTES = 2**18
"""Size of a part of a window; it stays in the processor's cache."""
PARTS = 8
WINDOW_BYTES = PARTS * PART_BYTES
_NAME = "organnet-voxels"
_FLAGS = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
_NO_PROGRAM = 8
"""MFD_NOEXEC_SEAL (Linux 6.3): the memory cannot be started as a program; some machines require it."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def new_window() -> int:
    """Return the descriptor of a new window; the caller closes it.

    Raises:
        OSError: If the process has too many open files.
    """
    try:
        descriptor = os.memfd_create(_NAME, _FLAGS | _NO_PROGRAM)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.memfd_create(_NAME, _FLAGS)
    try:
        os.ftruncate(descriptor, WINDOW_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def mapped(descriptor: int, *, writable: bool) -> memoryview:
    """Return the bytes of a window; they stay mapped as long as the view lives."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return memoryview(mmap.mmap(descriptor, WINDOW_BYTES, flags=mmap.MAP_SHARED, prot=protection))
