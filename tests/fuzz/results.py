"""Counts of a campaign; those of several runs add up in one JSON file."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.storage.atomic_files import write_json


@dataclass(slots=True)
class FormatCounts:
    """Counts of one format.

    Attributes:
        next_number: Number of the first file that was not sent yet.
        ways: Files by the way they were sent.
        answers: Answers by kind: `200`, `422`, ... or `accepted`, `refused`.
        failures: What must not happen, with the number of the file.
        seconds: Duration.
    """

    next_number: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class Results:
    """Counts by format, and what was observed of the server.

    Attributes:
        formats: Counts by format.
        info_ms: Answers of `/info/` by their time, in whole milliseconds rounded up.
        servers: A record of each server that was watched, oldest first (`server_record`).
        failures: What must not happen, and belongs to no single file.
    """

    formats: dict[str, FormatCounts] = field(default_factory=dict)
    info_ms: Counter[int] = field(default_factory=Counter)
    servers: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path | None) -> "Results":
        """Return the counts of earlier runs; empty ones if there are none."""
        if path is None or not path.exists():
            return cls()
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        formats = {
            name: FormatCounts(
                **{
                    **counts,
                    "ways": Counter(counts["ways"]),
                    "answers": Counter(counts["answers"]),
                }
            )
            for name, counts in known["formats"].items()
        }
        info_ms = Counter({int(key): count for key, count in known["info_ms"].items()})
        return cls(formats, info_ms, known.get("servers", []), known["failures"])

    def save(self, path: Path | None) -> None:
        """Write the counts, if a path is given."""
        if path is not None:
            formats = {
                name: {
                    **asdict(replace(counts, ways=Counter(), answers=Counter())),
                    "ways": dict(counts.ways),
                    "answers": dict(counts.answers),
                }
                for name, counts in self.formats.items()
            }
            info_ms = {str(ms): count for ms, count in sorted(self.info_ms.items())}
            others = {"servers": self.servers, "failures": self.failures}
            write_json(path, {"formats": formats, "info_ms": info_ms, **others})

    def of(self, format_name: str) -> FormatCounts:
        """Return the counts of a format."""
        return self.formats.setdefault(format_name, FormatCounts())

    @property
    def is_clean(self) -> bool:
        """Whether nothing happened that must not happen."""
        return not self.failures and not any(counts.failures for counts in self.formats.values())

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        lines = [f"{'format':<10}{'files':>9}{'failures':>10}{'seconds':>9}  ways; answers"]
        for name, counts in self.formats.items():
            total, failed = counts.ways.total(), len(counts.failures)
            numbers = f"{name:<10}{total:>9}{failed:>10}{counts.seconds:>9.0f}"
            lines.append(f"{numbers}  {_text(counts.ways)}; {_text(counts.answers)}")
        if self.info_ms:
            shares = {f"p{share * 100:g}": quantile(self.info_ms, share) for share in (0.5, 0.99)}
            most = max(self.info_ms)
            lines.append(
                f"/info/: {self.info_ms.total()} answers, {_text(shares)} ms, at most {most} ms"
            )
        if self.servers:
            newest = self.servers[-1]
            lines.append(f"newest of {len(self.servers)} servers: {json.dumps(newest)}")
        failures = [
            *self.failures,
            *(f for counts in self.formats.values() for f in counts.failures),
        ]
        return [*lines, *(f"FAILED: {failure}" for failure in failures)]


def server_record(
    what: str,
    files: int,
    info_ms: Mapping[int, int],
    rss_mib: Mapping[str, float],
    children_mib: Mapping[str, float],
) -> dict[str, Any]:
    """Return what was observed of one server, with the load of the machine, as a JSON object.

    Args:
        what: What its studies are in.
        files: Number of files that it was sent.
        info_ms: Answers of `/info/` by their time, in whole milliseconds rounded up.
        rss_mib: Resident memory in MiB: at the start, at the end, and the most.
        children_mib: The same of all its child processes together.
    """
    slow = sum(count for ms, count in info_ms.items() if ms > 1000)
    times = {f"p{share * 100:g}": quantile(info_ms, share) for share in (0.5, 0.99, 1.0)}
    return {
        "studies": what,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": files,
        "info": {"answers": sum(info_ms.values()), **times, "above_1000_ms": slow},
        "memory_mib": dict(rss_mib),
        "children_mib": dict(children_mib),
        "load_of_machine": round(os.getloadavg()[1], 1),
    }


def quantile(counts: Mapping[int, int], share: float) -> int:
    """Return the smallest value that at least `share` of the counted values do not exceed."""
    needed, seen = share * sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= needed:
            return value
    return 0


def _text(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in sorted(values.items()))
