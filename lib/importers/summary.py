"""What an import did, in lines for a person."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lib.importers.run import IMPORTED, NO_CONTOURS, UNCHANGED

_NAMES_SHOWN = 20


def summary_lines(report: Mapping[str, Any], outcomes: Mapping[str, str]) -> Iterator[str]:
    """Yield the summary.

    Args:
        report: As `lib.importers.run.import_cases` returns it.
        outcomes: Case -> what came of it in this run.
    """
    counts = Counter(
        o if o in (IMPORTED, UNCHANGED, NO_CONTOURS) else "refused" for o in outcomes.values()
    )
    yield (
        f"{len(outcomes)} cases: {counts[IMPORTED]} imported, {counts[UNCHANGED]} unchanged, "
        f"{counts['refused']} refused, {counts[NO_CONTOURS]} without contours"
    )
    cases = [report["cases"][name] for name in outcomes if name in report["cases"]]
    contoured = Counter(organ for case in cases for organ in case["organs"])
    for organ in report["labels"]:
        if cases:
            yield f"  {organ:<16}{contoured[organ]:>5} of {len(cases)} cases"
    for key, meaning in (
        ("unmapped", "names that mean no organ we know; map or ignore them with --names"),
        ("outside_set", f"organs that the set {report['organ_set']!r} does not have"),
    ):
        yield from _names_lines(Counter(name for case in cases for name in case[key]), meaning)
    shared = Counter[str]()
    for case in cases:
        shared.update(case["shared_vox"])
    for pair, count in shared.most_common():
        yield f"  {pair}: {count} voxels claimed by both went to the smaller organ"


def _names_lines(names: Mapping[str, int], meaning: str) -> Iterator[str]:
    if not names:
        return
    yield f"{len(names)} {meaning}:"
    for name, count in Counter(names).most_common(_NAMES_SHOWN):
        yield f"  {name!r} in {count} cases"
    if len(names) > _NAMES_SHOWN:
        yield f"  ... all of them are in import.json, by case ({len(names) - _NAMES_SHOWN} more)"
