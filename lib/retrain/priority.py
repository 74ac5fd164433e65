"""A training's place behind the server: less of the processor, and less of the GPU."""

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

NICENESS = 19
"""With it a process gets a seventieth of a core that another one wants (sched(7))."""


def threads_for(settings: Mapping[str, Any]) -> int:
    """Return how many threads a training computes with: half of the cores unless the settings say."""
    return int(settings["retrain_threads"]) or max(1, len(os.sched_getaffinity(0)) // 2)


def be_modest(request: Mapping[str, Any]) -> None:
    """Leave most of the machine to others, in this process, from now on.

    The first to be ended where memory is short is the training, not the server (proc(5), oom_score_adj).
    """
    settings = request["settings"]
    os.nice(NICENESS)
    torch.set_num_threads(threads_for(settings))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as own:  # noqa: PTH123 - no file
        own.write("500")
    if torch.device(request["device"]).type == "cuda":
        torch.cuda.set_per_process_memory_fraction(settings["retrain_gpu_share"])
