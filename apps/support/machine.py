"""Facts about the machine that a measurement ran on, and the load of other programs meanwhile."""

import os
import platform
import resource
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import psutil

from lib.backends.processor import processor
from lib.config import APP_DIR

PACKAGES = ("torch", "numpy", "scipy", "monai", "monailabel", "SimpleITK", "openvino")
PROCESSOR_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile")
"""Instruction sets that decide which way of computing a network is fast."""
MAX_OTHER_LOAD = 0.15
"""Largest load of other programs, in cores, beside which a measurement still counts."""
_IDLE_LOOK_S = 2.0


def facts() -> dict[str, Any]:
    """Return processor, memory, versions and commit, for the head of a table of measurements."""
    model, flags = processor()
    return {
        "processor": model,
        "flags": [name for name in PROCESSOR_FLAGS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


@dataclass(frozen=True, slots=True)
class _Moment:
    wall_s: float
    busy_s: float
    own_s: float

    @classmethod
    def now(cls) -> Self:
        own = sum(
            usage.ru_utime + usage.ru_stime
            for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                times = child.cpu_times()
                own += times.user + times.system + times.children_user + times.children_system
        cpu = psutil.cpu_times()
        return cls(time.monotonic(), cpu.user + cpu.nice + cpu.system + cpu.irq + cpu.softirq, own)


class OtherLoad:
    """Processor time that other programs took while a `with` block ran, in cores.

    Child processes that still run, and those that have ended and were waited for, count as part of this
    program.
    """

    def __init__(self) -> None:
        self.cores = 0.0

    def __enter__(self) -> Self:
        self._began = _Moment.now()
        return self

    def __exit__(self, *_: object) -> None:
        began, now = self._began, _Moment.now()
        others_s = (now.busy_s - began.busy_s) - (now.own_s - began.own_s)
        self.cores = round(max(0.0, others_s) / max(now.wall_s - began.wall_s, 1e-3), 3)

    @property
    def is_quiet(self) -> bool:
        """Whether the measurement counts."""
        return self.cores <= MAX_OTHER_LOAD


def load_at_rest() -> float:
    """Return the load of other programs in cores, while this one waits for two seconds."""
    with OtherLoad() as load:
        time.sleep(_IDLE_LOOK_S)
    return load.cores


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the code, with a `+` where files were changed since; None outside of git."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(APP_DIR), *command],
                capture_output=True, check=True, text=True, timeout=30,
            ).stdout.strip()
            for command in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changes else commit
