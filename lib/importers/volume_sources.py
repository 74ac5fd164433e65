"""Sources whose cases are volume files: PDDCA, OpenKBP, and pairs of a CT and a label volume.

Each source is a function that returns the cases of one folder, by file names only; no voxels are read.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import LabelError, ScanError
from lib.imaging.formats import CT_STEMS, LABEL_STEMS, scan_files, stem_of
from lib.imaging.quantities import MaskArray
from lib.imaging.scans import read_ct, read_label
from lib.importers.cases import ContouredScan, OrganNames, SourceCase
from lib.organs.table import organ_set

OPENKBP_VALUES = {value: name for name, value in organ_set("openkbp").items()}
"""Label value -> TG-263 name of the OpenKBP challenge (Babier et al. 2021)."""

_MASK_FOLDERS = ("structures", "segmentations")
_FOLDER_PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"))
_LABEL_ENDINGS = tuple(f"_{stem}" for stem in LABEL_STEMS)
_VALUE_FILES = ("labels.json", "dataset.json")


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
    ct, label = _single_file(folder, CT_STEMS), _single_file(folder, LABEL_STEMS)
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
    - `<case>.nii.gz` with `<case>_label.nii.gz` or `<case>_seg.nii.gz`;
    - one folder per case with `ct.*` and `label.*`.

    A `labels.json` or nnU-Net's `dataset.json` (`{"labels": {"Brainstem": 1}}`, or value to name), in the
    folder or its parent, names the label values. Without it, they are the values of the organ set.
    """
    cases = []
    for images, labels in _FOLDER_PAIRS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            cases += _two_folders(folder, folder / images, folder / labels)
    cases += _neighbours(folder)
    ct = _single_file(folder, CT_STEMS)
    if ct is not None:
        same_stem = [p for p in scan_files(folder) if p != ct and _bare(stem_of(p)) == stem_of(ct)]
        label = _single_file(folder, LABEL_STEMS) or (same_stem[0] if len(same_stem) == 1 else None)
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


def _read_masks(ct_path: Path, files: list[Path], case_id: str, names: OrganNames) -> ContouredScan:
    ct = read_ct(ct_path, image_id=case_id)
    by_name = {stem_of(path): path for path in files}
    if len(by_name) < len(files):
        raise LabelError(f"{case_id}: two mask files have one name; keep one of each")
    naming = names.classify(list(by_name), case_id)
    masks: dict[str, MaskArray] = {}
    notes = []
    for name, organ in naming.organs.items():
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
    notes = []
    if isinstance(values, Path):
        values = _read_values(values, case_id)
    elif values is None:
        values = {value: name for name, value in names.labels.items()}
        notes = [f"the label's values were read as those of the organ set {names.organ_set!r}"]
    ct = read_ct(ct_path, image_id=case_id)
    label, _ = read_label(label_path, image_id=case_id, image_grid=ct.grid)
    present = [int(v) for v in np.flatnonzero(np.bincount(label.ravel(), minlength=256)) if v]
    unknown = sorted(set(present) - set(values))
    if unknown:
        raise LabelError(
            f"{case_id}: the label holds the values {unknown}, which name no organ; known values are "
            f"{dict(sorted(values.items()))}; name the others in a labels.json"
        )
    naming = names.classify([values[v] for v in present], case_id)
    by_organ = {naming.organs[values[v]]: v for v in present if values[v] in naming.organs}
    masks = {organ: label == value for organ, value in by_organ.items()}
    return ContouredScan(ct=ct, masks=masks, naming=naming, notes=notes)


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
    paths = (where / name for where in (folder, folder.absolute().parent) for name in _VALUE_FILES)
    return next((path for path in paths if path.is_file()), None)


def _read_values(path: Path, case_id: str) -> dict[int, str]:
    """Return value -> name, from a file that maps values to names, or names to values."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        labels: dict[str, Any] = content.get("labels", content)
        if all(isinstance(v, str) for v in labels.values()):
            values = {int(value): str(name) for value, name in labels.items()}
        else:
            values = {int(value): str(name) for name, value in labels.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise LabelError(
            f'{case_id}: {path.name} does not name the label values; {{"labels": {{"Brainstem": 1}}}} '
            f"expected ({error})"
        ) from error
    return {value: name for value, name in values.items() if value}
