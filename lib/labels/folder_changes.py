"""Notices of changes in folders, from the operating system (watchfiles: inotify, FSEvents) or by comparison.

The operating system reports no changes that another machine makes on a network share, and each system has a
largest number of watched folders. In these cases, and before `start`, the folders must be compared. Notices can
be lost (in bursts, and in a folder that was created a moment ago), so they are compared now and then anyway.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from watchfiles import _rust_notify

logger = logging.getLogger(__name__)

COMPARE_S, COMPARE_RARELY_S = 2.0, 300.0
"""Shortest interval in s between comparisons, without and with notices."""
MAX_SHARE = 0.01
"""Largest share of a processor core that comparisons take."""
_STEP_MS, _LONGEST_MS = 100, 500
"""Notices are collected until there was none for `_STEP_MS`, at most for `_LONGEST_MS`."""
_WAIT_MS = 1000
_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse", "afs", "ceph", "gluster", "lustre", "virtiofs", "vboxsf",
            "gfs", "ocfs", "beegfs", "gpfs", "ncpfs")  # fmt: skip
"""Beginnings of the names of file systems that other machines can change."""


class FolderChanges:
    """Paths below folders that changed since they were last taken.

    Args:
        folders: The folders, which exist.
        compare: Returns the paths of the folders in them that changed since they were read.
    """

    def __init__(self, folders: Sequence[Path], compare: Callable[[], Iterable[str]]) -> None:
        self._folders = [str(folder.absolute()) for folder in folders]
        self._compare = compare
        self._mutex = threading.Lock()
        self._changed: set[str] = set()
        self._is_complete = False
        self.is_running = False
        """Whether `take` reports changes; if not, it returns None."""
        self._stopping = threading.Event()
        self._notices: _rust_notify.RustNotify | None = None
        self._thread = threading.Thread(target=self._run, name="folder-changes", daemon=True)

    def start(self) -> "FolderChanges":
        """Start to watch, and return self."""
        self._notices = self._open_notices()
        self.is_running = True
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop watching; from then on every call of `take` returns None."""
        self.is_running = False
        self._stopping.set()
        self._thread.join(10.0)

    def add(self, path: Path) -> None:
        """Add a path that this process changed, as its notice comes later."""
        with self._mutex:
            self._changed.add(str(path.absolute()))

    def take(self) -> set[str] | None:
        """Return the absolute paths that changed since the last call; None if anything may have changed."""
        with self._mutex:
            if not self.is_running:
                return None
            changed, self._changed = self._changed, set()
            is_complete, self._is_complete = self._is_complete, True
            return changed if is_complete else None

    def _open_notices(self) -> "_rust_notify.RustNotify | None":
        """Return the source of notices; None if there is none for these folders."""
        shares = [folder for folder in self._folders if is_network_folder(Path(folder))]
        try:
            if not shares:
                return _rust_notify.RustNotify(
                    self._folders,
                    debug=False,
                    force_polling=False,
                    poll_delay_ms=0,
                    recursive=True,
                    ignore_permission_denied=True,
                )
            reason = f"{shares[0]} is on a file system that other machines can change"
        except (OSError, RuntimeError) as error:
            reason = str(error)
        logger.warning(
            "new files are noticed by comparing folders, as the system reports no changes: %s",
            reason,
        )
        return None

    def _run(self) -> None:
        notices = self._notices
        shortest_s = COMPARE_S if notices is None else COMPARE_RARELY_S
        next_at = time.monotonic() + shortest_s
        while not self._stopping.is_set():
            try:
                if notices is None:
                    self._stopping.wait(COMPARE_S)
                else:
                    self._add_notices(notices)
                if time.monotonic() >= next_at:
                    next_at = time.monotonic() + max(shortest_s, self._add_differences())
            except Exception:
                logger.exception("changes of the folders could not be read; this is tried again")
                self._stopping.wait(COMPARE_S)
        if notices is not None:
            notices.close()

    def _add_notices(self, notices: "_rust_notify.RustNotify") -> None:
        found = notices.watch(_LONGEST_MS, _STEP_MS, _WAIT_MS, self._stopping)
        if isinstance(found, set):
            self._add(path for _, path in found)

    def _add_differences(self) -> float:
        """Compare the folders, and return after how many s this can be done again."""
        wall, own = time.monotonic(), time.thread_time()
        self._add(self._compare())
        wall, own = time.monotonic() - wall, time.thread_time() - own
        return max(own / MAX_SHARE, wall)

    def _add(self, paths: Iterable[str]) -> None:
        visible = {path for path in paths if not self._is_hidden(path)}
        with self._mutex:
            self._changed |= visible

    def _is_hidden(self, path: str) -> bool:
        inner = next((path[len(f) :] for f in self._folders if path.startswith(f)), path)
        return f"{os.sep}." in inner


def is_network_folder(folder: Path, mounts: str | None = None) -> bool:
    """Return whether a folder is on a file system that other machines can change.

    Args:
        folder: The folder.
        mounts: Content of `/proc/self/mountinfo` (proc(5)); None to read it. Without it the answer is False.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
    real = f"{os.path.realpath(folder)}/"
    longest, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        place = before.split(" ")[4].replace("\\040", " ").rstrip("/") + "/"
        # Of several mounts at one place the last one is visible.
        if real.startswith(place) and len(place) >= len(longest):
            longest, kind = place, after.partition(" ")[0]
    return kind.startswith(_NETWORK)
