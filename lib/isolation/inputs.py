"""A file or folder that a reader gets: its size, its state, and what of it may be read."""

import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

_LEVELS = 2
"""A DICOM series lies in a folder, or in the folders directly in it."""


class Input:
    """What is known of a file or folder before it is read.

    Attributes:
        path: The file or folder.
        size_bytes: Its size; of a folder, that of its files.
        state: Changes when it changes: inode, size and time of modification of each file.
        readable: Paths that the reader may read: `path`, and the targets of links in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.size_bytes = 0
        self.readable = [str(self.path)]
        state: list[tuple[Any, ...]] = []
        try:
            status = self.path.stat()
            if S_ISDIR(status.st_mode):
                self._add_folder(str(self.path), state, levels=_LEVELS)
            elif S_ISREG(status.st_mode):
                self._add_file(str(self.path), status, state)
        except OSError:
            pass  # The reader reports it.
        self.state = tuple(state)

    def _add_folder(self, folder: str, state: list[tuple[Any, ...]], *, levels: int) -> None:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                try:
                    status = entry.stat()
                    if entry.is_symlink():
                        self.readable.append(os.path.realpath(entry.path))
                    if S_ISREG(status.st_mode):
                        self._add_file(entry.path, status, state)
                    elif S_ISDIR(status.st_mode) and levels > 1:
                        self._add_folder(entry.path, state, levels=levels - 1)
                except OSError:
                    continue

    def _add_file(self, path: str, status: os.stat_result, state: list[tuple[Any, ...]]) -> None:
        self.size_bytes += status.st_size
        state.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
