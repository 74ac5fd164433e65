"""An import from its beginning, or from where it stopped, to its report.

What is written: `<case>.nii.gz`, `labels/final/<case>.nii.gz`, and after each case `import.json`. What is
there already is never lost: another CT or a label that somebody changed or drew is left as it is, and the case
is refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from lib.errors import ConfigError, DatastoreError, LabelError, OrganNetError
from lib.imaging.combine_masks import combine
from lib.imaging.formats import SCAN_SUFFIXES
from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.importers.cases import Drawing, SourceCase
from lib.importers.detect import ids_given_twice
from lib.importers.names import OrganNames
from lib.storage.atomic_files import write_json
from lib.storage.identifiers import require_image_id

REPORT = "import.json"
SUFFIX = ".nii.gz"
IMPORTED, UNCHANGED, NO_CONTOURS = "imported", "unchanged", "no contours"
_VERSION = 1
_EVERYTHING = (OrganNetError, OSError, MemoryError)
"""What one case may fail by without the others."""

Progress = Callable[[SourceCase, str], object]
"""Told, after each case, `IMPORTED`, `UNCHANGED`, `NO_CONTOURS` or the reason of a refusal."""


def import_cases(
    cases: Sequence[SourceCase],
    studies: Path,
    names: OrganNames,
    *,
    progress: Progress = lambda _case, _outcome: None,
) -> dict[str, Any]:
    """Bring `cases` into the studies folder and return the report, as it lies in `import.json`.

    A case that was imported before from the same files, with the same names and organs, is left alone.
    One refused case never stops the others. Refusals in the report are those of the last run.

    Raises:
        ConfigError: If another organ set was imported into the folder before, or an import is running there.
        DatastoreError: If the folder's `import.json` cannot be read.
    """
    with _alone_in(studies):
        report = read_report(studies, names)
        twice = ids_given_twice(cases)
        for case in cases:
            try:
                _require_one_of_its_name(case, twice.get(case.case_id.lower(), []))
                outcome = _import_one(case, studies, names, report)
            except _EVERYTHING as error:
                outcome = (
                    str(error) if isinstance(error, OrganNetError) else _system_reason(case, error)
                )
                report["refused"][case.case_id] = {"source": case.source, "reason": outcome}
            progress(case, outcome)
            write_json(studies / REPORT, report)
    return report


def read_report(studies: Path, names: OrganNames) -> dict[str, Any]:
    """Return the folder's report so far, without the refusals of the last run; a new one if there is none.

    Raises:
        ConfigError: If it is of another organ set.
        DatastoreError: If it cannot be read.
    """
    path = studies / REPORT
    report: dict[str, Any] = {"cases": {}}
    if path.exists():
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            found = (report["version"], report["organ_set"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatastoreError(
                f"{path}: is damaged ({error}); move it away, and the import compares its cases with the files"
            ) from error
        if found != (_VERSION, names.organ_set):
            raise ConfigError(
                f"{path}: the folder holds cases of the organ set {found[1]!r}, report version {found[0]}; "
                f"now {names.organ_set!r}, version {_VERSION}: give another folder with --output"
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
def _alone_in(studies: Path) -> Iterator[None]:
    studies.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(studies / ".import.lock", timeout=0):
            yield
    except Timeout as error:
        raise ConfigError(f"{studies}: another import is running here; wait for its end") from error


def _require_one_of_its_name(case: SourceCase, same: Sequence[SourceCase]) -> None:
    require_image_id(case.case_id)
    if len(same) > 1:
        raise DatastoreError(
            f"{case.case_id}: {len(same)} cases have this name (--list shows where); rename them, or import "
            "them into folders of their own"
        )


def _import_one(case: SourceCase, studies: Path, names: OrganNames, report: dict[str, Any]) -> str:
    """Import one case, enter it into `report`, and return what came of it."""
    if case.read is None:
        report["without_contours"].append(case.case_id)
        return NO_CONTOURS
    before = report["cases"].get(case.case_id, {})
    inputs = _fingerprint(case, names)
    if before.get("inputs") == inputs and all(p.is_file() for p in _places(studies, case.case_id)):
        return UNCHANGED
    entry = _bring(case.source, case.read(names), studies, names, before)
    report["cases"][case.case_id] = entry | {"inputs": inputs}
    return IMPORTED


def _bring(
    source: str, drawing: Drawing, studies: Path, names: OrganNames, before: dict[str, Any]
) -> dict[str, Any]:
    """Write one case and return its entry of the report."""
    case_id, naming = drawing.ct.image_id, drawing.naming
    if not drawing.masks:
        known = [*naming.organs, *naming.outside_set, *naming.unmapped]
        raise LabelError(
            f"{case_id}: no organ of the set {names.organ_set!r} is contoured; its names are "
            f"{', '.join(known) or 'none'}; --names says what they mean"
        )
    image, final = _places(studies, case_id)
    label, shared = combine(drawing.masks, names.labels, drawing.ct.grid, case_id)
    image_is_there = _require_same_image(image, drawing.ct)
    label_is_there = _require_own_label(final, label, before, case_id)
    if not image_is_there:
        write_ct(image, drawing.ct)
    if not label_is_there:
        write_label(final, label)
    volumes_ml = label.volumes_ml()
    notes = list(drawing.notes)
    notes += [f"{pair} share {n} voxels; the smaller organ has them" for pair, n in shared.items()]
    return {
        "source": source,
        "organs": list(volumes_ml),
        "volumes_ml": volumes_ml,
        "names": dict(naming.organs),
        "unmapped": list(naming.unmapped),
        "outside_set": list(naming.outside_set),
        "ignored": list(naming.ignored),
        "shared_vox": shared,
        "notes": notes,
        "label_sha256": _sha256(final),
    }


def _require_same_image(path: Path, ct: CtVolume) -> bool:
    """Return whether the image is there already; raise where another one has its name."""
    for suffix in ("", *SCAN_SUFFIXES):
        other = path.with_name(path.name.removesuffix(SUFFIX) + suffix)
        if other != path and other.exists():
            raise DatastoreError(
                f"{ct.image_id}: {other.name} is in the studies folder already; choose another folder, or "
                "rename the case"
            )
    if not path.exists():
        return False
    there = read_ct(path, image_id=ct.image_id)
    if not there.grid.is_same_as(ct.grid) or not np.array_equal(there.array_hu, ct.array_hu):
        raise DatastoreError(
            f"{ct.image_id}: {path.name} in the studies folder is another CT; it is left as it is: choose "
            "another folder, or rename the case"
        )
    return True


def _require_own_label(
    path: Path, label: LabelVolume, before: dict[str, Any], case_id: str
) -> bool:
    """Return whether the label is there already; raise where somebody changed or drew it."""
    if not path.exists() or _sha256(path) == before.get("label_sha256"):
        return False
    array, _ = read_label(path, image_id=case_id, image_grid=label.grid)
    if not np.array_equal(array, label.array):
        what = "was changed since its import" if before else "was not made by an import"
        raise DatastoreError(
            f"{case_id}: labels/final/{path.name} {what} and is left as it is; move it away to import the case"
        )
    return True


def _places(studies: Path, case_id: str) -> tuple[Path, Path]:
    return studies / f"{case_id}{SUFFIX}", studies / "labels" / "final" / f"{case_id}{SUFFIX}"


def _fingerprint(case: SourceCase, names: OrganNames) -> str:
    """Return a hash of what decides the result: the files by name, size and time, and how names are read."""
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in case.inputs)
    told = [_VERSION, case.source, names.organ_set, sorted(names.table.items()), files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _system_reason(case: SourceCase, error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) else "not enough memory"
    return f"{case.case_id}: {reason or type(error).__name__}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
