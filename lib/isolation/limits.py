"""Limits of one reader process."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MEMORY_VARIABLE = "ORGANNET_READER_MEMORY_GIB"
"""Environment variable that sets `Limits.memory_bytes`, in GiB; programs and worker processes inherit it."""

_LARGEST_DEFAULT_BYTES = 16 * 2**30
_SHARE_OF_MEMORY = 0.75
_CPU_S = 60
_CPU_S_PER_MIB = 1.0
_WAITING_FACTOR = 10
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one reader may use for one file.

    1024 x 1024 x 1024 voxels, the most that is read, take 2 GiB as int16 and 8 GiB as 64-bit floats.
    """

    memory_bytes: int
    """Address space beyond that of the template process."""
    cpu_s: int
    """Processor time in s."""
    wall_s: int
    """Time in s by the clock; longer, since a network share can be slow."""

    @classmethod
    def of_input(cls, size_bytes: int) -> "Limits":
        """Return the limits for an input of `size_bytes`, by the settings of this process."""
        cpu_s = round(_CPU_S + _CPU_S_PER_MIB * size_bytes / 2**20)
        return cls(memory_bytes=memory_bytes(), cpu_s=cpu_s, wall_s=_WAITING_FACTOR * cpu_s)

    def as_json(self) -> dict[str, Any]:
        """Return the limits as a JSON object."""
        return asdict(self)


def memory_bytes() -> int:
    """Return the memory limit in bytes: the environment's, or 3/4 of the memory, at most 16 GiB."""
    given = os.environ.get(MEMORY_VARIABLE, "")
    try:
        gib = float(given) if given else 0.0
    except ValueError:
        gib = 0.0
    if 0 < gib < float("inf"):
        return int(gib * 2**30)
    return min(_LARGEST_DEFAULT_BYTES, int(_SHARE_OF_MEMORY * _memory_of_machine()))


def _memory_of_machine() -> int:
    """Return the memory in bytes that this machine has, or that this container may use."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CGROUP_LIMITS:
        try:
            sizes.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return min(sizes)
