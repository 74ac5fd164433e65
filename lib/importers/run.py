"""The import of cases into a studies folder, its report, and a summary for the command line.

An import writes `<case>.nii.gz` and `labels/final/<case>.nii.gz`, and after each case `import.json`, so that an
interrupted import can be continued. Existing data is never overwritten: if another CT or a changed label is
there, it is kept and the case is refused.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from lib.errors import ConfigError, DatastoreError, LabelError, case_failure
from lib.imaging.formats import SCAN_SUFFIXES
from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.imaging.volumes import CtVolume, LabelVolume, combine_masks
from lib.importers.cases import IGNORE, ContouredScan, OrganNames, SourceCase
from lib.importers.detect import duplicate_ids
from lib.organs.changes import dropped, overlapping, renamed
from lib.organs.plausibility import plausibility_warnings
from lib.storage.atomic_files import write_json
from lib.storage.identifiers import require_image_id

REPORT = "import.json"
SUFFIX = ".nii.gz"
IMPORTED, UNCHANGED, NO_CONTOURS = "imported", "unchanged", "no contours"
_VERSION = 1
_RULES = 3
"""Number of the rules for names, values and doubts; cases of earlier rules are imported again."""
Progress = Callable[[SourceCase, str], object]
"""Called after each case with `IMPORTED`, `UNCHANGED`, `NO_CONTOURS` or the reason of a refusal."""


def import_cases(
    cases: Sequence[SourceCase],
    studies: Path,
    names: OrganNames,
    *,
    progress: Progress = lambda _case, _outcome: None,
) -> dict[str, Any]:
    """Import `cases` into the studies folder and return the report, as stored in `import.json`.

    A case that was imported before from the same files, with the same names and organs, is skipped.
    A refused case does not stop the others. The report lists the refusals of the last run only.

    Raises:
        ConfigError: If another organ set was imported into the folder before, or an import is running there.
        DatastoreError: If the folder's `import.json` cannot be read.
    """
    with _locked(studies):
        report = read_report(studies, names)
        duplicates = duplicate_ids(cases)
        for case in cases:
            try:
                _require_unique_id(case, duplicates.get(case.case_id.lower(), []))
                outcome = _import_one(case, studies, names, report)
            except Exception as error:  # noqa: BLE001 - one case does not stop the others
                outcome = case_failure(error, case.case_id)
                report["refused"][case.case_id] = {"source": case.source, "reason": outcome}
            progress(case, outcome)
            write_json(studies / REPORT, report)
    return report


def changes_by_import(studies: Path, image_id: str, digest: str) -> list[str]:
    """Return the changes that an import made to a case, if the label file with this SHA-256 is the import's."""
    try:
        report = json.loads((studies / REPORT).read_text(encoding="utf-8"))
        entry = report["cases"].get(image_id, {})
        return list(entry["changes"]) if entry.get("label_sha256") == digest else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def read_report(studies: Path, names: OrganNames) -> dict[str, Any]:
    """Return the folder's report without the refusals of the last run, or a new report if there is none.

    Raises:
        ConfigError: If it belongs to another organ set.
        DatastoreError: If it cannot be read.
    """
    path = studies / REPORT
    report: dict[str, Any] = {"cases": {}}
    if path.exists():
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            stored = (report["version"], report["organ_set"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatastoreError(
                f"{path}: is damaged ({error}); move it away: the import then compares its cases with the files"
            ) from error
        if stored != (_VERSION, names.organ_set):
            raise ConfigError(
                f"{path}: the folder holds cases of the organ set {stored[1]!r}, report version {stored[0]}; "
                f"expected {names.organ_set!r}, version {_VERSION}: give another folder with --output"
            )
    return {
        "version": _VERSION,
        "organ_set": names.organ_set,
        "labels": dict(names.labels),
        "cases": report["cases"],
        "refused": {},
        "without_contours": [],
    }


@contextmanager
def _locked(studies: Path) -> Iterator[None]:
    studies.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(studies / ".import.lock", timeout=0):
            yield
    except Timeout as error:
        raise ConfigError(
            f"{studies}: another import is running here; wait until it ends"
        ) from error


def _require_unique_id(case: SourceCase, same: Sequence[SourceCase]) -> None:
    require_image_id(case.case_id)
    if len(same) > 1:
        raise DatastoreError(
            f"{case.case_id}: {len(same)} cases have this name (--list shows where); rename them, or import "
            "them into folders of their own"
        )


def _import_one(case: SourceCase, studies: Path, names: OrganNames, report: dict[str, Any]) -> str:
    """Import one case, add it to `report`, and return the outcome."""
    if case.read is None:
        report["without_contours"].append(case.case_id)
        return NO_CONTOURS
    before = report["cases"].get(case.case_id, {})
    inputs = _fingerprint(case, names)
    image, final = _paths(studies, case.case_id)
    if before and image.is_file() and final.is_file():
        is_edited = _sha256(final) != before.get("label_sha256")
        # A label that was edited since its import is not replaced because the rules have changed.
        if before.get("inputs") == inputs or (
            is_edited and before.get("inputs") == _fingerprint(case, names, rules=())
        ):
            return UNCHANGED
    entry = _write_case(case.source, case.read(names), studies, names, before)
    report["cases"][case.case_id] = entry | {"inputs": inputs}
    return IMPORTED


def _write_case(
    source: str, scan: ContouredScan, studies: Path, names: OrganNames, before: dict[str, Any]
) -> dict[str, Any]:
    """Write one case and return its entry of the report."""
    case_id, naming = scan.ct.image_id, scan.naming
    if not scan.masks:
        structures = [*naming.organs, *naming.outside_set, *naming.unmapped]
        raise LabelError(
            f"{case_id}: no organ of the set {names.organ_set!r} is contoured; the structures are "
            f"{', '.join(structures) or 'none'}; {'; '.join([*scan.notes, 'map their names with --names'])}"
        )
    image, final = _paths(studies, case_id)
    label, shared = combine_masks(scan.masks, names.labels, scan.ct.grid, case_id)
    image_exists = _require_same_image(image, scan.ct)
    label_exists = _require_own_label(final, label, before, case_id)
    if not image_exists:
        write_ct(image, scan.ct)
    if not label_exists:
        write_label(final, label)
    volumes_ml = label.volumes_ml()
    changes = [
        *scan.notes,
        *renamed({name: organ for name, organ in naming.organs.items() if organ in scan.masks}),
        *dropped(naming.unmapped, "the name is unknown"),
        *dropped(naming.outside_set, f"it is not in the organ set {names.organ_set!r}"),
        *dropped(naming.ignored, f"--names says {IGNORE!r}"),
        *overlapping(shared),
    ]
    return {
        "source": source,
        "organs": list(volumes_ml),
        "volumes_ml": volumes_ml,
        "names": dict(naming.organs),
        "unmapped": list(naming.unmapped),
        "outside_set": list(naming.outside_set),
        "ignored": list(naming.ignored),
        "shared_vox": shared,
        "changes": changes,
        "notes": list(scan.notes),
        "doubts": plausibility_warnings(scan.ct.array_hu, label.array, scan.ct.grid, names.labels),
        "label_sha256": _sha256(final),
    }


def _require_same_image(path: Path, ct: CtVolume) -> bool:
    """Return whether the image exists already; raise if another image has its name."""
    for suffix in ("", *SCAN_SUFFIXES):
        other = path.with_name(path.name.removesuffix(SUFFIX) + suffix)
        if other != path and other.exists():
            raise DatastoreError(
                f"{ct.image_id}: {other.name} is in the studies folder already; choose another folder, or "
                "rename the case"
            )
    if not path.exists():
        return False
    existing = read_ct(path, image_id=ct.image_id)
    if not existing.grid.is_same_as(ct.grid) or not np.array_equal(existing.array_hu, ct.array_hu):
        raise DatastoreError(
            f"{ct.image_id}: {path.name} in the studies folder is another CT and was kept; choose another "
            "folder, or rename the case"
        )
    return True


def _require_own_label(
    path: Path, label: LabelVolume, before: dict[str, Any], case_id: str
) -> bool:
    """Return whether the label exists already; raise if it was changed or drawn by a user."""
    if not path.exists() or _sha256(path) == before.get("label_sha256"):
        return False
    array, _ = read_label(path, image_id=case_id, image_grid=label.grid)
    if not np.array_equal(array, label.array):
        reason = "was changed since its import" if before else "was not made by an import"
        raise DatastoreError(
            f"{case_id}: labels/final/{path.name} {reason} and was kept; move it away to import the case"
        )
    return True


def _paths(studies: Path, case_id: str) -> tuple[Path, Path]:
    return studies / f"{case_id}{SUFFIX}", studies / "labels" / "final" / f"{case_id}{SUFFIX}"


def _fingerprint(case: SourceCase, names: OrganNames, *, rules: tuple[int, ...] = (_RULES,)) -> str:
    """Return a hash of everything that decides the result: the files (name, size, time) and the name rules.

    The hashes of the first rules, which had no number, have none either.
    """
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in case.inputs)
    content = [_VERSION, *rules, case.source, names.organ_set, sorted(names.table.items()), files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


_NAMES_SHOWN = 20


def summary_lines(report: Mapping[str, Any], outcomes: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of the summary.

    Args:
        report: As `lib.importers.run.import_cases` returns it.
        outcomes: Case -> its outcome in this run.
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
    yield from _renamed_lines(cases)
    for key, meaning in (
        ("unmapped", "unknown names; map or ignore them with --names"),
        ("outside_set", f"organs outside the set {report['organ_set']!r}"),
    ):
        yield from _name_lines(Counter(name for case in cases for name in case[key]), meaning)
    shared = Counter[str]()
    for case in cases:
        shared.update(case["shared_vox"])
    for pair, count in shared.most_common():
        yield f"  {pair}: {count} shared voxels, assigned to the smaller organ"
    by_name = {name: report["cases"][name] for name in outcomes if name in report["cases"]}
    yield from _sentence_lines(by_name, "notes", "notes on what was read")
    yield from _sentence_lines(by_name, "doubts", "doubts about imported labels; look at them")


def _sentence_lines(
    cases: Mapping[str, Mapping[str, Any]], key: str, meaning: str
) -> Iterator[str]:
    lines = [f"  {name}: {text}" for name, case in cases.items() for text in case.get(key, ())]
    if lines:
        yield f"{len(lines)} {meaning}:"
    yield from lines[:_NAMES_SHOWN]
    yield from _rest_line(len(lines))


def _renamed_lines(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    pairs = Counter(
        (name, organ) for case in cases for name, organ in case["names"].items() if name != organ
    )
    if pairs:
        yield f"{len(pairs)} names stored as an organ's:"
    for (name, organ), count in pairs.most_common(_NAMES_SHOWN):
        yield f"  {name!r} as {organ} in {count} cases"
    yield from _rest_line(len(pairs))


def _name_lines(names: Mapping[str, int], meaning: str) -> Iterator[str]:
    if not names:
        return
    yield f"{len(names)} {meaning}:"
    for name, count in Counter(names).most_common(_NAMES_SHOWN):
        yield f"  {name!r} in {count} cases"
    yield from _rest_line(len(names))


def _rest_line(count: int) -> Iterator[str]:
    if count > _NAMES_SHOWN:
        yield f"  ... all of them are listed in import.json, by case ({count - _NAMES_SHOWN} more)"
