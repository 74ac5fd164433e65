"""Observation of a server: its life, the time of its answers, its memory, and the files that it touches."""

import math
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import requests

from tests.server.running import Server
from tests.waiting import LIMIT_S

LOOK_S = 0.25
MIB = 2**20


@dataclass(slots=True)
class Watcher:
    """A thread that asks `/info/` and reads the server's memory all the time.

    Attributes:
        server: The server.
        info_ms: Answers of `/info/` by their time, in whole milliseconds rounded up.
        rss_mib: Memory of the server: `start`, `end` and `most`.
        readers_mib: Memory of its child processes.
        wrong: What must not happen.
    """

    server: Server
    info_ms: Counter[int] = field(default_factory=Counter)
    rss_mib: dict[str, float] = field(default_factory=dict)
    readers_mib: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start watching."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the server process still runs."""
        return self.server.process.poll() is None

    def _watch(self) -> None:
        with requests.Session() as http:
            while not self._over.wait(LOOK_S):
                if not self.is_alive:
                    self.wrong.append(f"the server ended with code {self.server.process.poll()}")
                    return
                self._measure_memory()
                began = time.monotonic()
                try:
                    answer = http.get(f"{self.server.url}/info/", timeout=LIMIT_S)
                except requests.RequestException as error:
                    self.wrong.append(f"/info/ did not answer: {type(error).__name__}")
                    continue
                self.info_ms[math.ceil(1000 * (time.monotonic() - began))] += 1
                if answer.status_code != 200:
                    self.wrong.append(f"/info/ answered {answer.status_code}: {answer.text[:200]}")

    def _measure_memory(self) -> None:
        try:
            own = self.server.process.memory_info().rss / MIB
            children = (
                sum(_rss(child) for child in self.server.process.children(recursive=True)) / MIB
            )
        except psutil.NoSuchProcess:
            return
        for values, value in ((self.rss_mib, own), (self.readers_mib, children)):
            values.setdefault("start", round(value, 1))
            values["end"] = round(value, 1)
            values["most"] = max(values.get("most", 0.0), values["end"])

    def restart_memory(self) -> None:
        """Take the present memory as that of the start: caches and pools have grown."""
        self.rss_mib.clear()
        self.readers_mib.clear()
        self._measure_memory()


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


class Outside:
    """A folder beside the data folders that the server must neither read nor write.

    A read shows in the time of the last access: even with `relatime` (mount(8)) the first read after a change
    is recorded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        image = nib.Nifti1Image(np.zeros((20, 16, 12), np.int16), np.eye(4))  # type: ignore[no-untyped-call]
        nib.save(image, folder / "canary.nii.gz")
        (folder / "canary.raw").write_bytes(bytes(20 * 16 * 12 * 2))
        (folder / "canary.dcm").write_bytes(bytes(128) + b"DICM")
        self.can_see_reads = self._sees_a_read()
        self._state = self._now()

    def _sees_a_read(self) -> bool:
        self._reset()
        before = self._now()
        for path in self.folder.iterdir():
            path.read_bytes()
        is_seen = self._now() != before
        self._reset()
        return is_seen

    def _reset(self) -> None:
        for path in self.folder.iterdir():
            os.utime(path, (1_000_000_000, 1_100_000_000))

    def _now(self) -> dict[str, tuple[float, float, int]]:
        stats = {path.name: path.stat() for path in self.folder.rglob("*")}
        return {name: (s.st_atime, s.st_mtime, s.st_size) for name, s in stats.items()}

    def wrong(self) -> list[str]:
        """Return the files that were read, written, made or removed."""
        now = self._now()
        return [
            f"{name}, outside the data folders, was touched: {self._state.get(name)} -> {now.get(name)}"
            for name in sorted({*self._state, *now})
            if self._state.get(name) != now.get(name)
        ]
