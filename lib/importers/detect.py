"""Which cases lie below a folder, whatever put them there."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lib.errors import ConfigError, ScanError
from lib.importers import dicom_contours, nifti_pairs, openkbp, pddca
from lib.importers.cases import Drawing, SourceCase
from lib.importers.names import OrganNames

BY_FOLDER: Mapping[str, Callable[[Path], list[SourceCase]]] = {
    module.SOURCE: module.cases_in for module in (pddca, openkbp, nifti_pairs)
}
"""Sources whose cases are seen in one folder; the first that knows a folder has it."""

SOURCES = (*BY_FOLDER, dicom_contours.SOURCE)


def find_cases(
    folder: Path, *, source: str | None = None, leave_out: Path | None = None
) -> list[SourceCase]:
    """Return the cases at any depth below `folder`, sorted by id; several may have one id.

    Args:
        folder: Where to look.
        source: One of `SOURCES`; None for all of them.
        leave_out: A folder that is not looked into: the studies folder, where it lies inside.

    Raises:
        ConfigError: If there is no such source.
        ScanError: If the folder cannot be read, or holds no case.
    """
    if source is not None and source not in SOURCES:
        raise ConfigError(f"source {source!r} is not known; the sources are {', '.join(SOURCES)}")
    chosen = (source,) if source else SOURCES
    cases: list[SourceCase] = []
    try:
        closed: list[OSError] = []
        folders = list(_folders(folder, leave_out, closed))
        cases += [_unreadable(error) for error in closed]
        for place in folders:
            offers = (BY_FOLDER[name](place) for name in BY_FOLDER if name in chosen)
            cases += next((offer for offer in offers if offer), [])
        if dicom_contours.SOURCE in chosen:
            cases += dicom_contours.find(folders)
    except OSError as error:
        raise ScanError(f"{folder}: cannot be read: {error.strerror}") from error
    if not cases:
        raise ScanError(
            f"{folder}: no case found; expected img.nrrd with structures/ (PDDCA), pt_N/ct.nii.gz with "
            "pt_N/label.nii.gz (OpenKBP), images/ with labels/, CASE.nii.gz with CASE_label.nii.gz, or DICOM "
            "CT with RTSTRUCT or SEG"
        )
    return sorted(cases, key=lambda case: (case.case_id, str(case.place)))


def ids_given_twice(cases: Sequence[SourceCase]) -> dict[str, list[SourceCase]]:
    """Return the ids that several cases have, in small letters as some file systems see them."""
    by_id: defaultdict[str, list[SourceCase]] = defaultdict(list)
    for case in cases:
        by_id[case.case_id.lower()].append(case)
    return {case_id: same for case_id, same in by_id.items() if len(same) > 1}


def _unreadable(error: OSError) -> SourceCase:
    place = Path(str(error.filename))
    case_id = f"folder_{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"

    def read(_names: OrganNames) -> Drawing:
        raise ScanError(
            f"{case_id}: a folder cannot be read ({error.strerror}); --list shows which"
        )

    return SourceCase(source="folder", case_id=case_id, place=place, inputs=[], read=read)


def _folders(root: Path, leave_out: Path | None, closed: list[OSError]) -> Iterator[Path]:
    """Yield `root` and every folder below it once, links followed; add errors of reading one to `closed`."""
    if not root.is_dir():
        raise ScanError(f"{root}: no such folder")
    seen: set[Path] = set() if leave_out is None else {leave_out.resolve()}
    for place, inner, _ in os.walk(root, onerror=closed.append, followlinks=True):
        here = Path(place).resolve()
        if here in seen:
            inner.clear()
            continue
        seen.add(here)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(place)
