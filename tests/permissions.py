"""Permissions of files as an ordinary user meets them, also where the tests run as root.

Root passes every permission check by two capabilities (capabilities(7)). Without them, root is an ordinary
user who owns the files: `chmod 000` makes a file unreadable, `chmod a-w` a folder read-only.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BYPASSING = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
_VERSION_3 = 0x20080522

AS_ORDINARY_USER = """
import runpy, sys
from tests.permissions import give_up_root
give_up_root()
sys.argv[0] = "monailabel"
runpy.run_module("monailabel.main", run_name="__main__")
"""
"""Code of a MONAI Label server that permissions apply to: `python -c AS_ORDINARY_USER start_server ...`."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _capabilities() -> tuple[ctypes.CDLL, _Header, ctypes.Array[_Data]]:
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    if libc.capget(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capget")
    return libc, header, data


def give_up_root() -> int:
    """Take the two capabilities from this thread and the threads it starts; return those that it had."""
    libc, header, data = _capabilities()
    had = int(data[0].effective)
    data[0].effective = had & ~_BYPASSING
    if libc.capset(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capset")
    return had


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Let permissions apply to this thread while the block runs; nothing changes for a user who is not root."""
    had = give_up_root()
    try:
        yield
    finally:
        libc, header, data = _capabilities()
        data[0].effective = had
        if libc.capset(ctypes.byref(header), data):
            raise OSError(ctypes.get_errno(), "capset")


@contextmanager
def forbidden(*paths: Path, mode: int = 0o000) -> Iterator[None]:
    """Give files or folders a mode while the block runs, and let permissions apply to this thread."""
    before = [path.stat().st_mode for path in paths]
    for path in paths:
        path.chmod(mode)
    try:
        with ordinary_user():
            yield
    finally:
        for path, old in zip(paths, before, strict=True):
            path.chmod(old)
