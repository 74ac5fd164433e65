"""Names of unfinished files, and removal of what killed processes left.

The name of an unfinished file says which process writes it, so that the next start of any server removes the
files of processes that are gone, and keeps those of other servers over the same folder. A file of another
machine, or of the time before a restart of the machine, is removed once it was not written to for an hour.
"""

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

UNFINISHED = ".writing-"
"""Prefix of the names of unfinished files and folders."""
SCRATCH = "organnet-"
"""Prefix of the names of this program's files in the system's temporary folder."""
ABANDONED_S = 3600.0
"""Time in s without a write after which a file of an unknown process counts as left by a killed one."""
_PROCESS = re.compile(rf"(?:{re.escape(UNFINISHED)}|{SCRATCH})([0-9a-f]{{8}})-([0-9]+)-([0-9]+)-")
_ENDED_STATES = (b"Z", b"X")
"""States in /proc/PID/stat of a process that has ended and was not waited for (proc(5))."""


def unfinished_prefix() -> str:
    """Return the prefix of the names of unfinished files of this process."""
    return UNFINISHED + _process_tag(os.getpid())


def scratch_prefix() -> str:
    """Return the prefix of the names of this process's files in the system's temporary folder."""
    return SCRATCH + _process_tag(os.getpid())


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder in `parent`, or else in the system's temporary folder; it is removed at the end.

    A folder that cannot be removed then, because `parent` became read-only, is removed at the next start.
    """
    prefix = scratch_prefix() if parent is None else unfinished_prefix()
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        # Not TemporaryDirectory: without permission its removal calls itself up to the recursion limit.
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(folder: Path, *, is_recursive: bool = True) -> int:
    """Remove unfinished files and folders of killed processes in `folder`; return their number.

    Args:
        folder: The folder; one that cannot be read is left as it is.
        is_recursive: Whether to search the folders in it too.
    """
    found: list[Path] = []
    for path, folders, files in os.walk(folder):
        found += [Path(path, n) for n in (*folders, *files) if n.startswith(UNFINISHED)]
        folders[:] = [n for n in folders if is_recursive and not n.startswith(UNFINISHED)]
    return _remove_abandoned(found)


def remove_abandoned_scratch() -> int:
    """Remove temporary files of killed processes of this program; return their number.

    They contain uploaded scans and contours, and not every system empties its temporary folder. Files of other
    users, and files that may be in use, are kept.
    """
    folder = Path(tempfile.gettempdir())
    found = [*folder.glob(f"{SCRATCH}*"), *folder.glob(f"{UNFINISHED}*{SCRATCH}*")]
    return _remove_abandoned(path for path in found if _is_own(path))


def _remove_abandoned(paths: Iterable[Path]) -> int:
    abandoned = [path for path in paths if _is_abandoned(path)]
    for path in abandoned:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue
    return len(abandoned)


def _is_abandoned(path: Path) -> bool:
    process = _PROCESS.match(path.name)
    if process is not None and process[1] == _machine():
        return _start_of(int(process[2])) != int(process[3])
    return _last_written_s(path) < time.time() - ABANDONED_S


def _last_written_s(path: Path) -> float:
    """Return the time of the last write to a file or folder; the present time if that cannot be read."""
    try:
        is_folder = path.is_dir() and not path.is_symlink()
        inside = path.rglob("*") if is_folder else ()
        return max(float(entry.lstat().st_mtime) for entry in (path, *inside))
    except OSError:
        return time.time()


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


@cache
def _process_tag(pid: int) -> str:
    return f"{_machine()}-{pid}-{_start_of(pid)}-"


@cache
def _machine() -> str:
    """Return eight hexadecimal digits for this machine since its start, and this container."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        pass  # Not Linux: the host name has to do.
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _start_of(pid: int) -> int:
    """Return when a process was started, in clock ticks since the start of the machine; -1 if it has ended.

    Where there is no /proc, the number is 0 for each process that exists.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        # Fields 3 and 22 of proc(5): the command before them, in parentheses, may contain spaces.
        return -1 if fields[0] in _ENDED_STATES else int(fields[19])
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return -1
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except OSError:
        return 0
    return 0
