"""Model name and instruction sets of this machine's processor."""

import platform
from contextlib import suppress
from pathlib import Path


def processor() -> tuple[str, frozenset[str]]:
    """Return the model name of the processor and its instruction sets, as in `/proc/cpuinfo` (proc(5)).

    Where the system tells neither, the name is that of the architecture, and there are no instruction sets.
    """
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    # `Features` on ARM.
    flags = fields.get("flags") or fields.get("Features", "")
    return model, frozenset(flags.split())
