"""Clinical exports as cases: CT series, and the RTSTRUCTs or SEGs drawn on them, anywhere below a folder.

Files are matched by the UIDs in their headers, not by their location: a planning system puts all of a patient
into one folder, an archive each series into its own. A case is named by a hash of its StudyInstanceUID; names
of patients, folders and files are not used any further.
"""

import filecmp
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from pydicom.dataset import FileDataset

from lib.dicom.object_attributes import referenced_frames, referenced_series
from lib.dicom.objects import MODALITIES, read_object
from lib.errors import ScanError
from lib.imaging.dicom_files import DICOM_SUFFIXES, PARSING_ERRORS, is_dicom, read_dicom, text_of
from lib.imaging.dicom_series import dicom_candidates, read_headers
from lib.imaging.scans import read_ct
from lib.imaging.slice_selection import is_capture, is_localizer
from lib.importers.cases import ContouredScan, NameMapping, OrganNames, SourceCase
from lib.storage.leftovers import scratch_folder

DICOM_SOURCE = "dicom"

_TAGS = ["Modality", "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
         "FrameOfReferenceUID", "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence",
         "StructureSetROISequence"]  # fmt: skip


@dataclass(slots=True)
class _Series:
    """The files of one CT series, and unreadable DICOM files in the same folders."""

    uid: str
    study: str
    frame: str
    files: list[Path] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Structures:
    """One RTSTRUCT or SEG, and the series and frames of reference that it refers to."""

    path: Path
    uid: str
    study: str
    series: frozenset[str]
    frames: frozenset[str]


def find_dicom_cases(folders: Iterable[Path]) -> list[SourceCase]:
    """Return a case for each CT series in all of `folders`, and for each contour file without its CT."""
    all_series: dict[str, _Series] = {}
    structures: list[_Structures] = []
    damaged: list[Path] = []
    for path in (p for folder in folders for p in dicom_candidates(folder)):
        header = _header(path)
        if header is None:
            damaged.append(path)
        if not header:
            continue
        modality = text_of(header, "Modality")
        if modality in MODALITIES:
            new = _structures(path, header)
            if not any(_is_copy(new, other) for other in structures):
                structures.append(new)
        elif modality == "CT" and not is_localizer(header) and not is_capture(header):
            uid = text_of(header, "SeriesInstanceUID")
            series = all_series.setdefault(
                uid,
                _Series(
                    uid, text_of(header, "StudyInstanceUID"), text_of(header, "FrameOfReferenceUID")
                ),
            )
            series.files.append(path)
    series_folders = {uid: {p.parent for p in series.files} for uid, series in all_series.items()}
    for uid, series in all_series.items():
        series.damaged += [p for p in damaged if p.parent in series_folders[uid]]
    orphans = [p for p in damaged if not any(p.parent in dirs for dirs in series_folders.values())]
    return _cases(all_series, structures) + [_unreadable(path) for path in orphans]


def _cases(all_series: dict[str, _Series], structures: Sequence[_Structures]) -> list[SourceCase]:
    by_series: defaultdict[str, list[_Structures]] = defaultdict(list)
    unmatched = []
    for item in structures:
        uids = [uid for uid in all_series if uid in item.series]
        if not item.series:
            uids = [uid for uid, series in all_series.items() if series.frame in item.frames]
        if len(uids) == 1:
            by_series[uids[0]].append(item)
        else:
            unmatched.append((item, len(uids)))
    ids = _case_ids(
        [(s.study, s.uid) for s in all_series.values()] + [(i.study, i.uid) for i, _ in unmatched]
    )
    return [_of_series(s, by_series[s.uid], ids[s.uid]) for s in all_series.values()] + [
        _without_ct(item, count, ids[item.uid]) for item, count in unmatched
    ]


def _case_ids(uids: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return UID -> `case_` and 8 digits of the study's hash; 4 of the UID's hash are added if not unique."""
    ids = {uid: f"case_{_hash(study or uid)[:8]}" for study, uid in uids}
    times = Counter(ids.values())
    return {u: f"{i}_{_hash(u)[:4]}" if times[i] > 1 else i for u, i in ids.items()}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _of_series(series: _Series, structures: Sequence[_Structures], case_id: str) -> SourceCase:
    # A damaged file may be the contours: reading the case then reports it.
    may_have_contours = structures or series.damaged
    read = partial(_read, series, structures, case_id) if may_have_contours else None
    return SourceCase(
        source=DICOM_SOURCE,
        case_id=case_id,
        location=structures[0].path if structures else series.files[0].parent,
        inputs=[*series.files, *series.damaged, *(s.path for s in structures)],
        read=read,
    )


def _without_ct(item: _Structures, count: int, case_id: str) -> SourceCase:
    matches = f"{count} CT series" if count else "no CT series"
    return SourceCase(
        source=DICOM_SOURCE,
        case_id=case_id,
        location=item.path,
        inputs=[item.path],
        read=partial(
            _refuse,
            f"{case_id}: the contours match {matches} in the folder, one expected; export them with the CT "
            "that they were drawn on, and only that one",
        ),
    )


def _refuse(reason: str, _names: OrganNames) -> ContouredScan:
    raise ScanError(reason)


def _unreadable(path: Path) -> SourceCase:
    case_id = f"damaged_{_hash(path.name)[:8]}"
    reason = f"{case_id}: a DICOM file without a CT beside it is damaged; export it again"
    return SourceCase(
        source=DICOM_SOURCE,
        case_id=case_id,
        location=path,
        inputs=[path],
        read=partial(_refuse, reason),
    )


def _read(
    series: _Series, structures: Sequence[_Structures], case_id: str, names: OrganNames
) -> ContouredScan:
    if series.damaged:
        sizes = ", ".join(str(p.stat().st_size) for p in series.damaged[:3])
        raise ScanError(
            f"{case_id}: {len(series.damaged)} files beside the CT's slices ({sizes} bytes) should be DICOM "
            "and cannot be read; slices or contours may be missing: export the study again"
        )
    if len(structures) > 1:
        raise ScanError(
            f"{case_id}: {len(structures)} RTSTRUCT or SEG files were drawn on this CT; keep the approved one"
        )
    with scratch_folder() as scratch:
        # Some exports put patients' names into file names, and messages contain file names.
        structure_file, folder = scratch / "contours.dcm", scratch / "ct"
        structure_file.symlink_to(structures[0].path.resolve())
        folder.mkdir()
        for number, path in enumerate(series.files, start=1):
            (folder / f"file_{number:05d}.dcm").symlink_to(path.resolve())
        headers, grid = read_headers(folder, image_id=case_id)
        mappings: list[NameMapping] = []

        def select(rois: Sequence[str]) -> list[str]:
            mappings.append(names.classify(list(dict.fromkeys(rois)), case_id))
            return list(mappings[-1].organs)

        contours = read_object(structure_file, headers, grid, image_id=case_id, select=select)
        ct = read_ct(folder, image_id=case_id)
    organs = mappings[-1].organs
    return ContouredScan(
        ct=ct,
        masks={organs[name]: mask for name, mask in contours.masks.items()},
        naming=mappings[-1],
        notes=contours.changes,
    )


def _header(path: Path) -> FileDataset | Literal[False] | None:
    """Return a file's header, False if it is not meant to be DICOM, None if it cannot be read."""
    try:
        if not is_dicom(path):
            return None if path.suffix.lower() in DICOM_SUFFIXES else False
        return read_dicom(path, keywords=_TAGS)
    except PARSING_ERRORS:
        return None


def _is_copy(one: _Structures, other: _Structures) -> bool:
    """Return whether two files are the same; some programs keep the UID of an object that was edited."""
    return one.uid == other.uid and filecmp.cmp(one.path, other.path, shallow=False)


def _structures(path: Path, header: FileDataset) -> _Structures:
    try:
        series = frozenset(referenced_series(header))
        rois = header.get("StructureSetROISequence") or ()
        frames = {str(r.get("ReferencedFrameOfReferenceUID", "")) for r in rois}
        frames |= referenced_frames(header)
    except PARSING_ERRORS:
        series, frames = frozenset(), set()
    uid = text_of(header, "SOPInstanceUID") or str(path)
    return _Structures(
        path, uid, text_of(header, "StudyInstanceUID"), series, frozenset(frames - {""})
    )
