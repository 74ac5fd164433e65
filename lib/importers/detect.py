"""Detection of the cases below a folder, in every known source format."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from lib.errors import ConfigError, ScanError
from lib.importers.cases import ContouredScan, OrganNames, SourceCase
from lib.importers.dicom_contours import DICOM_SOURCE, find_dicom_cases
from lib.importers.volume_sources import VOLUME_SOURCES

SOURCES = (*VOLUME_SOURCES, DICOM_SOURCE)


def find_cases(
    folder: Path, *, source: str | None = None, leave_out: Path | None = None
) -> list[SourceCase]:
    """Return the cases at any depth below `folder`, sorted by id; several may have one id.

    Args:
        folder: The folder to search.
        source: One of `SOURCES`; None for all of them.
        leave_out: A folder that is not searched: the studies folder, if it lies inside.

    Raises:
        ConfigError: If there is no such source.
        ScanError: If the folder cannot be read, or holds no case.
    """
    if source is not None and source not in SOURCES:
        raise ConfigError(f"unknown source {source!r}; known sources: {', '.join(SOURCES)}")
    selected = (source,) if source else SOURCES
    cases: list[SourceCase] = []
    try:
        errors: list[OSError] = []
        folders = list(_folders(folder, leave_out, errors))
        cases += [_unreadable(error) for error in errors]
        for path in folders:
            offers = (find(path) for name, find in VOLUME_SOURCES.items() if name in selected)
            cases += next((offer for offer in offers if offer), [])
        if DICOM_SOURCE in selected:
            cases += find_dicom_cases(folders)
    except OSError as error:
        raise ScanError(f"{folder}: cannot be read: {error.strerror}") from error
    if not cases:
        raise ScanError(
            f"{folder}: no case found; expected img.nrrd with structures/ (PDDCA), pt_N/ct.nii.gz with "
            "pt_N/label.nii.gz (OpenKBP), images/ with labels/, CASE.nii.gz with CASE_label.nii.gz, or DICOM "
            "CT with RTSTRUCT or SEG"
        )
    return sorted(cases, key=lambda case: (case.case_id, str(case.location)))


def duplicate_ids(cases: Sequence[SourceCase]) -> dict[str, list[SourceCase]]:
    """Return the ids that several cases have, in lower case: some file systems do not distinguish case."""
    by_id: defaultdict[str, list[SourceCase]] = defaultdict(list)
    for case in cases:
        by_id[case.case_id.lower()].append(case)
    return {case_id: same for case_id, same in by_id.items() if len(same) > 1}


def _unreadable(error: OSError) -> SourceCase:
    """Return a case that stands for a folder that cannot be read, so that the report names it."""
    path = Path(str(error.filename))
    case_id = f"folder_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"

    def read(_names: OrganNames) -> ContouredScan:
        raise ScanError(
            f"{case_id}: a folder cannot be read ({error.strerror}); --list shows which"
        )

    return SourceCase(source="folder", case_id=case_id, location=path, inputs=[], read=read)


def _folders(root: Path, leave_out: Path | None, errors: list[OSError]) -> Iterator[Path]:
    """Yield `root` and every folder below it once, following links; collect read errors in `errors`."""
    if not root.is_dir():
        raise ScanError(f"{root}: no such folder")
    visited: set[Path] = set() if leave_out is None else {leave_out.resolve()}
    for path, inner, _ in os.walk(root, onerror=errors.append, followlinks=True):
        real_path = Path(path).resolve()
        if real_path in visited:
            inner.clear()
            continue
        visited.add(real_path)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(path)
