"""Confinement of a reader process: what it gives up before it opens the file."""

import ctypes
import os
import resource
import signal
import site
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lib.isolation import file_access, system_calls
from lib.isolation.limits import Limits

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_CAPABILITIES_VERSION_3 = 0x20080522
_CAP_DAC_READ_SEARCH = 2
"""Capability to read any file; kept, so that a server that runs as root reads what it can read itself."""
_MAX_OPEN_FILES = 64
_OOM_SCORE = 1000
"""When memory runs out, the kernel ends a reader before any other process (proc(5), oom_score_adj)."""
_LIB = Path(__file__).parents[1]
_LIBRARIES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that forked it ends (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Confinement:
    """The limits of this process, those that no file changes in force already.

    What the kernel does not offer is left out; `missing_protections` names it.
    """

    def __init__(self) -> None:
        with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123 - no file
            file.write(str(_OOM_SCORE))
        # No core dump, which would put voxels on disk, and no access by other processes of this user.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
        _limit(resource.RLIMIT_FSIZE, 0)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
        self._files = file_access.ReadableFiles(_libraries()) if file_access.version() else None
        _drop_capabilities()
        self._calls = system_calls.CallFilter() if system_calls.is_supported() else None
        self._own_bytes = _address_space()

    def enforce(self, limits: Limits, readable: Iterable[str]) -> None:
        """Limit this process to `limits`, and to reading the files and folders of `readable`."""
        signal.setitimer(signal.ITIMER_REAL, limits.wall_s)
        _limit(resource.RLIMIT_AS, self._own_bytes + limits.memory_bytes)
        _limit(resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + 1)
        if self._files is not None:
            self._files.add(readable)
            self._files.enforce()
        if self._calls is not None:
            with suppress(OSError):
                self._calls.enforce()


def missing_protections() -> list[str]:
    """Return what this machine cannot deny a reader, as phrases; usually nothing."""
    missing = []
    if not file_access.version():
        missing.append("reading of other files (Landlock: Linux 5.13)")
    if not system_calls.is_supported():
        missing.append("system calls (seccomp: x86_64 and aarch64)")
    return missing


def _libraries() -> list[str]:
    """Return the folders from which Python and the readers may load modules."""
    return [str(_LIB), sys.prefix, sys.base_prefix, *site.getsitepackages(), *_LIBRARIES]


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    _, highest = resource.getrlimit(kind)
    wanted = hard if hard is not None else soft
    if highest != resource.RLIM_INFINITY:
        soft, wanted = min(soft, highest), min(wanted, highest)
    resource.setrlimit(kind, (soft, wanted))


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no file
        return int(file.read().split()[0]) * resource.getpagesize()


def _drop_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITIES_VERSION_3, 0)
    present = ctypes.create_string_buffer(24)
    if libc.capget(header, present) != 0:
        return
    effective, permitted, _ = struct.unpack_from("=III", present.raw)
    kept = 1 << _CAP_DAC_READ_SEARCH
    libc.capset(header, struct.pack("=IIIIII", effective & kept, permitted & kept, 0, 0, 0, 0))
