"""A place behind the server: less of the processor, and less of the GPU."""

import os
from contextlib import suppress

import torch

NICENESS = 19
"""With it a process gets a seventieth of a core that another one wants (sched(7))."""


def fewer_threads(wanted: int = 0) -> int:
    """Return how many threads such a process computes with: half of the cores unless told."""
    return wanted or max(1, len(os.sched_getaffinity(0)) // 2)


def be_modest(*, threads: int, device: str, gpu_share: float) -> None:
    """Leave most of the machine to others, in this process, from now on.

    The first to be ended where memory is short is this process, not the server (proc(5), oom_score_adj).
    """
    os.nice(NICENESS)
    torch.set_num_threads(threads)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as own:  # noqa: PTH123 - no file
        own.write("500")
    if torch.device(device).type == "cuda":
        torch.cuda.set_per_process_memory_fraction(gpu_share)
