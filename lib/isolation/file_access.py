"""Restriction of this process to reading some files and folders, by Landlock (landlock(7), Linux 5.13)."""

import ctypes
import functools
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _RULE_PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Version of Landlock -> number of its rights on files."""
_ALL_NETWORK, _ALL_SCOPES = 0b11, 0b11
_O_PATH = os.O_PATH | os.O_CLOEXEC
_PR_SET_NO_NEW_PRIVS = 38


def version() -> int:
    """Return the version of Landlock in this kernel; 0 if there is none."""
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)))


class ReadableFiles:
    """Rules by which a process may read files at and below some paths, and no others; not in force yet.

    Args:
        paths: The first of these paths. Paths that do not exist are left out.

    Raises:
        OSError: If the kernel has no Landlock.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        kernel = version()
        rights = (1 << _RIGHTS[min(max(kernel, 1), 5)]) - 1
        attributes = struct.pack("=Q", rights)
        if kernel >= 4:
            attributes += struct.pack("=Q", _ALL_NETWORK)
        if kernel >= 6:
            attributes += struct.pack("=Q", _ALL_SCOPES)
        self._ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
        self.add(paths)

    def add(self, paths: Iterable[str]) -> None:
        """Allow reading at and below more paths."""
        for path in paths:
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                self._add(path)

    def enforce(self) -> None:
        """Deny this process all other files, and all writing; cannot be undone.

        Where the kernel can, TCP connections and signals to other processes are denied, too.

        Raises:
            OSError: If the kernel refuses.
        """
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        _call(_RESTRICT_SELF, self._ruleset, 0)
        os.close(self._ruleset)

    def _add(self, path: str) -> None:
        descriptor = os.open(path, _O_PATH)
        try:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            rights = _READ_FILE | (_READ_DIR if is_folder else 0)
            rule = struct.pack("=Qi", rights, descriptor)
            _call(_ADD_RULE, self._ruleset, _RULE_PATH_BENEATH, rule, 0)
        finally:
            os.close(descriptor)


def _call(number: int, *arguments: int | bytes) -> int:
    result = int(_libc().syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
