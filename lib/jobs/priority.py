"""Priorities of background work: few resources, and a pause while a server runs inference."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from lib.storage.process_locks import ProcessLock

NICENESS = 19
"""Lowest priority: such a process gets about 1/70 of a core that another process wants (sched(7))."""
FILE = "contouring.lock"
LONGEST_WAIT_S = 20.0
"""Longest pause of a training step, in s: under continuous requests the training continues slowly."""
_POLL_S = 0.02


def background_threads(wanted: int = 0) -> int:
    """Return the number of computing threads of a background process: `wanted`, or half of the cores if 0."""
    return wanted or max(1, len(os.sched_getaffinity(0)) // 2)


def training_threads(wanted: int = 0) -> int:
    """Return the number of computing threads of a training: `wanted`; if 0, at least 4 of the cores, or half.

    A training may use every core of a small machine: it has the lowest priority, and pauses during inference.
    """
    cores = len(os.sched_getaffinity(0))
    return wanted or max(min(cores, 4), cores // 2)


def lower_priority(*, threads: int, device: str, gpu_share: float) -> None:
    """Give this process low CPU priority, `threads` threads and at most `gpu_share` of the GPU's memory.

    When memory runs out, the kernel kills this process before the server (proc(5), oom_score_adj).
    """
    os.nice(NICENESS)
    torch.set_num_threads(threads)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123 - no file
        file.write("500")
    if torch.device(device).type == "cuda":
        torch.cuda.set_per_process_memory_fraction(gpu_share)


class ServingPriority:
    """Precedence of inference over background work, for all processes of one studies folder.

    A server that runs inference holds a shared file lock. The kernel releases the lock of a server that dies,
    so no crash leaves a training waiting.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = ProcessLock(folder / FILE)
        self._mutex = threading.Lock()
        self._running = 0

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Pause background work while the `with` block runs inference."""
        with self._mutex:
            self._running += 1
            if self._running == 1:
                self._lock.acquire_shared()
        try:
            yield
        finally:
            with self._mutex:
                self._running -= 1
                if self._running == 0:
                    self._lock.release()

    def give_way(self) -> float:
        """Wait until no other process runs inference, at most `LONGEST_WAIT_S`; return the wait in s."""
        began = time.monotonic()
        while not self._lock.is_free() and time.monotonic() - began < LONGEST_WAIT_S:
            time.sleep(_POLL_S)
        return time.monotonic() - began
