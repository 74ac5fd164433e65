"""Folders of labelled cases: a studies folder of the server, or one folder per case."""

from pathlib import Path

from lib.errors import DatastoreError
from lib.imaging.formats import SCAN_SUFFIXES
from lib.imaging.scans import find_scans, scan_name
from lib.training.cases import Case

LABEL_STEMS = ("label", "labels", "segmentation")


def labelled_cases(folder: Path) -> list[Case]:
    """Return every scan in `folder` that has a final label, sorted by its id.

    Two layouts are understood: the server's (`ID.nii.gz` or a DICOM folder `ID`, with
    `labels/final/ID.nii.gz`), and one folder per case (`ID/ct.nii.gz` with `ID/label.nii.gz`).

    Raises:
        DatastoreError: If there is no labelled case, or two have one name.
    """
    cases = []
    for scan in find_scans(folder):
        name = scan_name(scan)
        label = _label_of(folder, scan, name)
        if label is not None:
            cases.append(Case(name, scan, label))
    if not cases:
        raise DatastoreError(
            f"{folder}: no labelled case; expected ID.nii.gz with labels/final/ID.nii.gz, "
            "or ID/ct.nii.gz with ID/label.nii.gz"
        )
    names = [case.image_id for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatastoreError(
            f"{folder}: several scans are called {', '.join(twice)}; keep one of each"
        )
    return sorted(cases, key=lambda case: case.image_id)


def _label_of(folder: Path, scan: Path, name: str) -> Path | None:
    places = [folder / "labels" / "final" / name]
    if scan.is_file() and scan.parent != folder:
        places += [scan.parent / stem for stem in LABEL_STEMS]
    files = (place.with_name(place.name + suffix) for place in places for suffix in SCAN_SUFFIXES)
    return next((file for file in files if file.is_file()), None)
