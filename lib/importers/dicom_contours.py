"""Clinical exports: CT series and the RTSTRUCTs or SEGs drawn on them, anywhere below a folder.

Files belong together by what they say of each other, not by where they lie: a planning system puts all of a
patient into one folder, an archive each series into its own. A case is called by a hash of its
StudyInstanceUID; no name of a patient, a folder or a file goes any further.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pydicom
from pydicom.dataset import FileDataset

from lib.dicom.objects import MODALITIES, read_object
from lib.dicom.references import referenced_series
from lib.errors import ScanError
from lib.imaging.dicom_series import DICOM_SUFFIXES, PARSING_ERRORS, is_dicom, read_headers
from lib.imaging.scans import read_ct
from lib.importers.cases import Drawing, SourceCase
from lib.importers.names import Naming, OrganNames

SOURCE = "dicom"

_TAGS = ["Modality", "ImageType", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
         "FrameOfReferenceUID", "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence",
         "StructureSetROISequence"]  # fmt: skip


@dataclass(slots=True)
class _Series:
    """The files of one CT series, and those beside them that claim to be DICOM and cannot be read."""

    uid: str
    study: str
    frame: str
    files: list[Path] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Structures:
    """One RTSTRUCT or SEG."""

    path: Path
    uid: str
    study: str
    series: frozenset[str]
    frames: frozenset[str]


def find(folders: Iterable[Path]) -> list[SourceCase]:
    """Return a case for each CT series in `folders` taken together, and for contours without their CT."""
    all_series: dict[str, _Series] = {}
    structures: dict[str, _Structures] = {}
    damaged: list[Path] = []
    for path in (p for folder in folders for p in _files(folder)):
        header = _header(path)
        if header is None:
            damaged.append(path)
        if not header:
            continue
        modality = str(header.get("Modality", ""))
        if modality in MODALITIES:
            structures.setdefault(
                _uid(header, "SOPInstanceUID") or str(path), _structures(path, header)
            )
        elif modality == "CT" and "LOCALIZER" not in str(header.get("ImageType", "")):
            uid = _uid(header, "SeriesInstanceUID")
            known = all_series.setdefault(
                uid,
                _Series(uid, _uid(header, "StudyInstanceUID"), _uid(header, "FrameOfReferenceUID")),
            )
            known.files.append(path)
    places = {uid: {p.parent for p in series.files} for uid, series in all_series.items()}
    for uid, series in all_series.items():
        series.damaged += [p for p in damaged if p.parent in places[uid]]
    alone = [p for p in damaged if not any(p.parent in of_series for of_series in places.values())]
    return _cases(all_series, list(structures.values())) + [_unreadable(path) for path in alone]


def _cases(all_series: dict[str, _Series], structures: Sequence[_Structures]) -> list[SourceCase]:
    drawn_on: defaultdict[str, list[_Structures]] = defaultdict(list)
    lost = []
    for one in structures:
        uids = [uid for uid in all_series if uid in one.series]
        if not one.series:
            uids = [uid for uid, series in all_series.items() if series.frame in one.frames]
        if len(uids) == 1:
            drawn_on[uids[0]].append(one)
        else:
            lost.append((one, len(uids)))
    ids = _case_ids(
        [(s.study, s.uid) for s in all_series.values()] + [(o.study, o.uid) for o, _ in lost]
    )
    return [_of_series(s, drawn_on[s.uid], ids[s.uid]) for s in all_series.values()] + [
        _without_ct(one, count, ids[one.uid]) for one, count in lost
    ]


def _case_ids(uids: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return UID -> `case_` and 8 digits of its study's hash, and 4 of its own where that is not enough."""
    ids = {uid: f"case_{_hash(study or uid)[:8]}" for study, uid in uids}
    times = Counter(ids.values())
    return {u: f"{i}_{_hash(u)[:4]}" if times[i] > 1 else i for u, i in ids.items()}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _of_series(series: _Series, structures: Sequence[_Structures], case_id: str) -> SourceCase:
    may_be_drawn = structures or series.damaged
    read = partial(_read, series, structures, case_id) if may_be_drawn else None
    return SourceCase(
        source=SOURCE,
        case_id=case_id,
        place=structures[0].path if structures else series.files[0].parent,
        inputs=[*series.files, *series.damaged, *(s.path for s in structures)],
        read=read,
    )


def _without_ct(one: _Structures, count: int, case_id: str) -> SourceCase:
    found = f"{count} CT series" if count else "no CT series"
    return SourceCase(
        source=SOURCE,
        case_id=case_id,
        place=one.path,
        inputs=[one.path],
        read=partial(
            _refuse,
            f"{case_id}: the contours were drawn on {found} of those here; export the CT that it was drawn on, "
            "and that one only",
        ),
    )


def _refuse(reason: str, _names: OrganNames) -> Drawing:
    raise ScanError(reason)


def _unreadable(path: Path) -> SourceCase:
    case_id = f"damaged_{_hash(path.name)[:8]}"
    reason = f"{case_id}: a DICOM file without a CT beside it is damaged; export it again"
    return SourceCase(
        source=SOURCE, case_id=case_id, place=path, inputs=[path], read=partial(_refuse, reason)
    )


def _read(
    series: _Series, structures: Sequence[_Structures], case_id: str, names: OrganNames
) -> Drawing:
    if series.damaged:
        sizes = ", ".join(str(p.stat().st_size) for p in series.damaged[:3])
        raise ScanError(
            f"{case_id}: {len(series.damaged)} files beside the CT's slices ({sizes} bytes) should be DICOM "
            "and cannot be read; slices or contours may be missing: export the study again"
        )
    if len(structures) > 1:
        raise ScanError(
            f"{case_id}: {len(structures)} RTSTRUCT or SEG files were drawn on this CT; keep the one that is "
            "approved"
        )
    with TemporaryDirectory(prefix="organnet-") as scratch:
        # File names are made of patients' names by some exports, and messages name files.
        structure_file, folder = Path(scratch) / "contours.dcm", Path(scratch) / "ct"
        structure_file.symlink_to(structures[0].path.resolve())
        folder.mkdir()
        for number, path in enumerate(series.files, start=1):
            (folder / f"file_{number:05d}.dcm").symlink_to(path.resolve())
        headers, grid = read_headers(folder, image_id=case_id)
        namings: list[Naming] = []

        def wanted(rois: Sequence[str]) -> list[str]:
            namings.append(names.sort(list(dict.fromkeys(rois)), case_id))
            return list(namings[-1].organs)

        drawn = read_object(structure_file, headers, grid, image_id=case_id, wanted=wanted)
        ct = read_ct(folder, image_id=case_id)
    organs = namings[-1].organs
    return Drawing(
        ct=ct,
        masks={organs[name]: mask for name, mask in drawn.masks.items()},
        naming=namings[-1],
        notes=drawn.notes,
    )


def _files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return [p for p in files if p.name.upper() != "DICOMDIR"]


def _header(path: Path) -> FileDataset | Literal[False] | None:
    """Return a file's header, False where it is not meant to be DICOM, None where it cannot be read."""
    try:
        if not is_dicom(path):
            return None if path.suffix.lower() in DICOM_SUFFIXES else False
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except PARSING_ERRORS:
        return None


def _structures(path: Path, header: FileDataset) -> _Structures:
    try:
        series = frozenset(referenced_series(header))
        rois = header.get("StructureSetROISequence") or ()
        frames = {str(r.get("ReferencedFrameOfReferenceUID", "")) for r in rois}
        frames.add("" if rois else str(header.get("FrameOfReferenceUID", "")))
    except PARSING_ERRORS:
        series, frames = frozenset(), set()
    uid = _uid(header, "SOPInstanceUID") or str(path)
    return _Structures(
        path, uid, _uid(header, "StudyInstanceUID"), series, frozenset(frames - {""})
    )


def _uid(header: FileDataset, keyword: str) -> str:
    try:
        return str(header.get(keyword, "") or "")
    except PARSING_ERRORS:
        return ""
