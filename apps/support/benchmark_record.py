"""The record of one run of the benchmark: sections, ratios, machine and load."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from apps.support.machine import MAX_OTHER_LOAD, OtherLoad, facts, load_at_rest

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Section:
    """What one part of the benchmark measured.

    Attributes:
        name: Key in the JSON file.
        unit: Unit of the values, such as `s` or `ms`.
        rows: Row -> column -> value; medians unless a column says otherwise.
        ratios: Ratio -> value; both sides were measured in turn in this run.
        notes: Sentences that a reader of the numbers needs.
    """

    name: str
    unit: str
    rows: Mapping[str, Mapping[str, float | int | str | None]]
    ratios: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_text(self) -> str:
        """Return the section as a table."""
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        width = max([len(name) for name in self.rows] or [0]) + 2
        widths = [max(len(column), 10) + 2 for column in columns]
        head = "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))
        lines = [f"{self.name} ({self.unit})", f"  {'':{width}}{head}"]
        for name, row in self.rows.items():
            cells = "".join(
                f"{_cell(row.get(c)):>{w}}" for c, w in zip(columns, widths, strict=True)
            )
            lines.append(f"  {name:{width}}{cells}")
        lines += [f"  {name}: {value:.3g}" for name, value in self.ratios.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


class BenchmarkRecord:
    """Sections of one run, with the load of other programs before, during and after it.

    A ratio counts only if the machine was quiet: else `conclusive` is false, and `why` names the load.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._began = datetime.now(UTC)
        self._before = load_at_rest()
        self._sections: list[Section] = []
        self._loads: dict[str, float] = {}

    def add(self, section: Section, load: OtherLoad) -> None:
        """Add a section and the load of other programs while it was measured; print it."""
        self._sections.append(section)
        self._loads[section.name] = load.cores
        print(section.as_text())
        if not load.is_quiet:
            print(f"  other programs took {load.cores:.2f} cores meanwhile: no conclusion")
        print(flush=True)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON objects."""
        after = load_at_rest()
        loads = {"before": self._before, **self._loads, "after": after}
        busy = {name: cores for name, cores in loads.items() if cores > MAX_OTHER_LOAD}
        return {
            "format": FORMAT,
            "command": self._command,
            "began": self._began.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": facts(),
            "load_of_others_cores": loads,
            "conclusive": not busy,
            "why": _reason(busy),
            "ratios": {
                name: value for section in self._sections for name, value in section.ratios.items()
            },
            "sections": {
                section.name: {
                    "unit": section.unit,
                    "rows": section.rows,
                    "ratios": section.ratios,
                    "notes": list(section.notes),
                }
                for section in self._sections
            },
        }


def _reason(busy: Mapping[str, float]) -> str:
    if not busy:
        return f"other programs took at most {MAX_OTHER_LOAD} cores"
    loads = ", ".join(f"{name} {cores:.2f}" for name, cores in busy.items())
    return (
        f"other programs took more than {MAX_OTHER_LOAD} cores ({loads}): run the benchmark again on an idle "
        "machine"
    )


def _cell(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
