"""Sources whose cases are volume files: PDDCA, OpenKBP, and pairs of a CT and a label volume.

Each source is a function that returns the cases of one folder, by file names only; no voxels are read.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from lib.errors import LabelError, ScanError
from lib.imaging.formats import CT_STEMS, LABEL_STEMS, label_stem_of, scan_files, stem_of
from lib.imaging.named_labels import NamedLabel, read_named_label
from lib.imaging.quantities import MaskArray
from lib.imaging.scans import read_ct, read_label
from lib.imaging.segments import named_segments
from lib.importers.cases import ContouredScan, OrganNames, SourceCase
from lib.importers.value_names import IGNORE_LABEL, VALUE_FILES, read_value_names
from lib.organs.changes import moved
from lib.organs.naming import tg263_name
from lib.organs.table import organ_set

OPENKBP_VALUES = {value: name for name, value in organ_set("openkbp").items()}
"""Label value -> TG-263 name of the OpenKBP challenge (Babier et al. 2021)."""

_MASK_FOLDERS = ("structures", "segmentations")
_FOLDER_PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"))
_SEG = ".seg"
"""Ending of the stem of a segmentation that 3D Slicer saved, `<case>.seg.nrrd`."""
_LABEL_ENDINGS = (_SEG, *(f"_{stem}" for stem in LABEL_STEMS))


def pddca_cases(folder: Path) -> list[SourceCase]:
    """Return `folder` as a case with one mask per organ, or an empty list if it is not one.

    PDDCA 1.4.1 has `0522cNNNN/img.nrrd` with `structures/BrainStem.nrrd`, ...; the TCIA expert masks and
    TotalSegmentator's training set have `ct.*` with `segmentations/`.
    """
    ct = _single_file(folder, CT_STEMS)
    inner = next((folder / name for name in _MASK_FOLDERS if (folder / name).is_dir()), None)
    if ct is None or inner is None:
        return []
    masks = scan_files(inner)
    case_id = folder.absolute().name
    return [
        SourceCase(
            source="pddca",
            case_id=case_id,
            location=folder,
            inputs=[ct, *masks],
            read=partial(_read_masks, ct, masks, case_id) if masks else None,
        )
    ]


def openkbp_cases(folder: Path) -> list[SourceCase]:
    """Return `folder` as a case of OpenKBP, or an empty list if it is not one.

    The layout is `pt_N/ct.nii.gz` with `pt_N/label.nii.gz`; the label values are `OPENKBP_VALUES`.
    """
    ct, label = _single_file(folder, CT_STEMS), _label_file(folder)
    case_id = folder.absolute().name
    if ct is None or not re.fullmatch(r"pt_\d+", case_id) or _value_file(folder):
        return []
    return [
        SourceCase(
            source="openkbp",
            case_id=case_id,
            location=folder,
            inputs=[ct] if label is None else [ct, label],
            read=None if label is None else partial(_read_pair, ct, label, OPENKBP_VALUES, case_id),
        )
    ]


def paired_cases(folder: Path) -> list[SourceCase]:
    """Return the cases of `folder` that pair a CT with one label volume, in three layouts.

    - `images/` beside `labels/` (also nnU-Net's `imagesTr/` and `labelsTr/`);
    - `<case>.nii.gz` with `<case>_label.nii.gz`, `<case>_seg.nii.gz` or `<case>.seg.nrrd`;
    - one folder per case with `ct.*` and `label.*`.

    A label file that names its segments, such as 3D Slicer's `.seg.nrrd`, is read by these names. Otherwise a
    `labels.json` or nnU-Net's `dataset.json` (`{"labels": {"Brainstem": 1}}`, or value to name), in the folder
    or its parent, names the label values. Without it, they are the values of the organ set.
    """
    cases = []
    for images, labels in _FOLDER_PAIRS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            cases += _two_folders(folder, folder / images, folder / labels)
    cases += _neighbours(folder)
    ct = _single_file(folder, CT_STEMS)
    if ct is not None:
        same_stem = [p for p in scan_files(folder) if p != ct and _bare(stem_of(p)) == stem_of(ct)]
        label = _label_file(folder) or (same_stem[0] if len(same_stem) == 1 else None)
        cases.append(_pair(folder, ct, label, folder.absolute().name))
    return cases


VOLUME_SOURCES: Mapping[str, Callable[[Path], list[SourceCase]]] = {
    "pddca": pddca_cases,
    "openkbp": openkbp_cases,
    "nifti_pairs": paired_cases,
}
"""Name of a source -> its cases in one folder; of several sources that find cases, the first is used."""


def _single_file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    """Return the volume in `folder` that has one of `stems`, None if there is none or several."""
    files = [p for p in scan_files(folder) if stem_of(p).lower() in stems]
    return files[0] if len(files) == 1 else None


def _label_file(folder: Path) -> Path | None:
    """Return the label volume in `folder`, None if there is none or several."""
    files = [p for p in scan_files(folder) if label_stem_of(p).lower() in LABEL_STEMS]
    return files[0] if len(files) == 1 else None


def _read_masks(ct_path: Path, files: list[Path], case_id: str, names: OrganNames) -> ContouredScan:
    ct = read_ct(ct_path, image_id=case_id)
    by_name = {stem_of(path): path for path in files}
    if len(by_name) < len(files):
        raise LabelError(f"{case_id}: two mask files have one name; keep one of each")
    naming = names.classify(list(by_name), case_id)
    masks: dict[str, MaskArray] = {}
    notes = []
    for name, organ in naming.organs.items():
        _require_same_organ(by_name[name], organ, case_id)
        array, _ = read_label(by_name[name], image_id=case_id, image_grid=ct.grid)
        if len(set(array[array > 0].tolist())) > 1:
            raise LabelError(
                f"{case_id}: {by_name[name].name} holds several values; a mask of one organ expected"
            )
        if array.any():
            masks[organ] = array > 0
        else:
            notes.append(f"{by_name[name].name} is empty")
    return ContouredScan(ct=ct, masks=masks, naming=naming, notes=notes)


def _require_same_organ(path: Path, organ: str, case_id: str) -> None:
    """Raise if a mask file names another organ than its file name does."""
    inner = [segment.name for segment in named_segments(path, case_id)]
    others = [name for name in inner if tg263_name(name) not in (None, organ)]
    if others:
        raise LabelError(
            f"{case_id}: {path.name} is called {organ} and names its segment {others[0]!r}; rename one of them"
        )


def _read_pair(
    ct_path: Path,
    label_path: Path,
    values: Mapping[int, str] | Path | None,
    case_id: str,
    names: OrganNames,
) -> ContouredScan:
    """Return a CT with the organs of its label.

    Args:
        ct_path: The CT.
        label_path: The label volume.
        values: Label value -> name, or a file with this mapping; None for the values of the organ set.
        case_id: For messages.
        names: Maps the names to organs.

    Raises:
        ScanError: If the CT cannot be read.
        LabelError: If the label or the file of values cannot be read, or a value is unknown.
    """
    ct = read_ct(ct_path, image_id=case_id)
    named = read_named_label(label_path, image_id=case_id, image_grid=ct.grid)
    given = read_value_names(values, case_id) if isinstance(values, Path) else None
    if named is not None:
        _require_agreement(named, given or {}, names, case_id)
        masks_by_name = named.masks(case_id)
        _require_contoured(masks_by_name, case_id)
        naming = names.classify(list(masks_by_name), case_id)
        organs = naming.organs
        own = {organs[n]: mask for n, mask in masks_by_name.items() if n in organs}
        places = {
            v: (organs[n], names.labels[organs[n]])
            for (_, v), n in named.present.items()
            if n in organs
        }
        notes = [*named.changes, *(moved(places) if len(named.layers) == 1 else [])]
        return ContouredScan(ct=ct, masks=own, naming=naming, notes=notes)
    notes = []
    if given is not None:
        values = given
    elif not isinstance(values, Mapping):
        values = {value: name for name, value in names.labels.items()}
        notes = [f"the label's values were read as those of the organ set {names.organ_set!r}"]
    label, _ = read_label(label_path, image_id=case_id, image_grid=ct.grid)
    present = [int(v) for v in np.flatnonzero(np.bincount(label.ravel(), minlength=256)) if v]
    unknown = sorted(set(present) - set(values))
    if unknown:
        raise LabelError(
            f"{case_id}: the label holds the values {unknown}, which name no organ; known values are "
            f"{dict(sorted(values.items()))}; name the others in a labels.json"
        )
    _require_contoured([values[v] for v in present], case_id)
    naming = names.classify([values[v] for v in present], case_id)
    by_organ = {naming.organs[values[v]]: v for v in present if values[v] in naming.organs}
    masks = {organ: label == value for organ, value in by_organ.items()}
    notes += moved({value: (organ, names.labels[organ]) for organ, value in by_organ.items()})
    return ContouredScan(ct=ct, masks=masks, naming=naming, notes=notes)


def _require_agreement(
    named: NamedLabel, given: Mapping[int, str], names: OrganNames, case_id: str
) -> None:
    """Raise if the names in a label file and those in a file of values mean different organs."""
    for (_, value), name in named.present.items():
        other = given.get(value, name)
        meanings = [names.classify([n], case_id).organs.get(n, n) for n in (name, other)]
        if meanings[0] != meanings[1]:
            raise LabelError(
                f"{case_id}: the label file names its value {value} {name!r}, the file of values {other!r}; "
                "correct one of them"
            )


def _require_contoured(present: Iterable[str], case_id: str) -> None:
    """Raise if a label marks a region that was not contoured."""
    if any(name.strip().lower() == IGNORE_LABEL for name in present):
        raise LabelError(
            f"{case_id}: it has voxels of {IGNORE_LABEL!r}, which marks regions that were not contoured: "
            "its organs may be incomplete; contour the whole scan, or leave the case out"
        )


def _two_folders(folder: Path, images: Path, labels: Path) -> list[SourceCase]:
    label_of = {_bare(stem_of(p)): p for p in scan_files(labels)}
    cases = []
    for image in scan_files(images):
        # nnU-Net numbers the channels of a case: `case_0000.nii.gz` is the first.
        case_id = stem_of(image).removesuffix("_0000")
        label = label_of.pop(stem_of(image), None) or label_of.pop(case_id, None)
        cases.append(_pair(folder, image, label, case_id))
    return cases + [_without_image(label, case_id) for case_id, label in label_of.items()]


def _without_image(label: Path, case_id: str) -> SourceCase:
    def read(_names: OrganNames) -> ContouredScan:
        raise ScanError(f"{case_id}: labels has {label.name}, images has no CT of this name")

    return SourceCase(
        source="nifti_pairs", case_id=case_id, location=label, inputs=[label], read=read
    )


def _neighbours(folder: Path) -> list[SourceCase]:
    files = {stem_of(p): p for p in scan_files(folder)}
    pairs = ((name, _bare(name)) for name in files)
    return [
        _pair(folder, files[image], files[label], image)
        for label, image in pairs
        if image != label and image in files and image.lower() not in CT_STEMS
    ]


def _bare(name: str) -> str:
    """Return `name` without an ending such as `_label` or `_seg`."""
    return next((name.removesuffix(s) for s in _LABEL_ENDINGS if name.endswith(s)), name)


def _pair(folder: Path, image: Path, label: Path | None, case_id: str) -> SourceCase:
    values = _value_file(folder)
    return SourceCase(
        source="nifti_pairs",
        case_id=case_id,
        location=image,
        inputs=[image, *([label] if label else []), *([values] if values else [])],
        read=None if label is None else partial(_read_pair, image, label, values, case_id),
    )


def _value_file(folder: Path) -> Path | None:
    """Return the file that names the label values of `folder`, if there is one."""
    paths = (where / name for where in (folder, folder.absolute().parent) for name in VALUE_FILES)
    return next((path for path in paths if path.is_file()), None)
