"""Search of the programs for scans: as the server lists a studies folder, and in folders of cases."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import ScanError
from lib.imaging.dicom_series import holds_dicom
from lib.imaging.formats import CT_STEMS, SCAN_SUFFIXES, scan_files, stem_of, suffix_of
from lib.imaging.scans import scan_name
from lib.labels.studies_folder import LABELS, StudiesFolder
from lib.storage.identifiers import image_id_of

_REASONS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class FoundScan:
    """A scan for `read_ct`.

    Attributes:
        path: A volume file, or the folder of a DICOM series.
        image_id: Id as on the server; of `CASE/ct.nii.gz` the id that the folder `CASE` would have.
    """

    path: Path
    image_id: str


@dataclass(frozen=True, slots=True)
class FoundScans:
    """The scans in a folder.

    Attributes:
        scans: Sorted by path; two scans may have one id.
        refused: Image id, or path in the folder -> why an entry is no scan, or cannot be read.
    """

    scans: Sequence[FoundScan]
    refused: Mapping[str, str]

    def by_name(self) -> dict[str, Path]:
        """Return the scans by names that differ: `scan_name`, or where several have it, a longer one."""
        candidates = [
            (scan_name(s.path), s.image_id, s.path.name, f"{s.image_id} {s.path.name}")
            for s in self.scans
        ]
        levels = list(zip(*candidates, strict=True))
        found: dict[str, Path] = {}
        for scan, names in zip(self.scans, candidates, strict=True):
            free = (n for n, level in zip(names, levels, strict=True) if level.count(n) == 1)
            found[next(name for name in (*free, str(scan.path)) if name not in found)] = scan.path
        return found


def find_scans(folder: Path) -> FoundScans:
    """Return the scans in `folder`: the files and folders that `read_ct` reads.

    A file, a folder of DICOM files, and a folder with a `ct.*`, `img.*` or `image.*` file are one scan. Any
    other folder is searched, with its folders, as the server does (`StudiesFolder`); besides, a folder in it
    with such a file is one scan.

    Raises:
        ScanError: If there are none.
    """
    if suffix_of(folder) and folder.is_file():
        return FoundScans([FoundScan(folder, image_id_of(scan_name(folder)))], {})
    try:
        whole = [folder] if holds_dicom(folder) else _ct_files(scan_files(folder))
    except OSError as error:
        raise ScanError(
            f"{folder}: cannot be read as a folder of scans: {error.strerror}"
        ) from error
    if whole:
        return FoundScans([FoundScan(path, image_id_of(scan_name(path))) for path in whole], {})
    content = StudiesFolder(folder, reserved={LABELS: ""}, harmful=dict).entries()
    scans = [FoundScan(folder / entry.path, entry.image_id) for entry in content.images]
    series = {scan.path for scan in scans}
    for path in _ct_files(folder / name for name in content.inner_volumes):
        if path.parent not in series:
            case = str(path.parent.relative_to(folder))
            scans.append(FoundScan(path, image_id_of(case)))
    if not scans:
        reasons = "".join(f"; {reason}" for reason in [*content.refused.values()][:_REASONS_SHOWN])
        raise ScanError(
            f"{folder}: no scans; expected DICOM files, {', '.join(SCAN_SUFFIXES)} files, or a folder of such"
            f"{reasons}"
        )
    return FoundScans(sorted(scans, key=lambda scan: scan.path), content.refused)


def _ct_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if stem_of(path).lower() in CT_STEMS)
