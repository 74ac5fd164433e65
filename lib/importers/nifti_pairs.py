"""Pairs of a CT and one label volume, in any format that `lib.imaging.scans` reads.

Three layouts: `images/` beside `labels/` (nnU-Net's `imagesTr/` and `labelsTr/` too); `<case>.nii.gz` with
`<case>_label.nii.gz` or `<case>_seg.nii.gz`; a folder a case with `ct.*` and `label.*`.

What the values mean is said by a `labels.json` or nnU-Net's `dataset.json` (`{"labels": {"Brainstem": 1}}`, or
value to name) in the folder or the one above; without one they are the values of the organ set.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import LabelError, ScanError
from lib.imaging.scans import read_ct, read_label
from lib.importers.cases import Drawing, SourceCase
from lib.importers.folders import CT_STEMS, ct_file, label_file, scan_files, stem
from lib.importers.names import OrganNames

SOURCE = "nifti_pairs"
_FOLDER_PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"))
_SUFFIXES = ("_label", "_labels", "_seg", "_segmentation")
_MEANINGS = ("labels.json", "dataset.json")


def cases_in(folder: Path) -> list[SourceCase]:
    """Return the cases that `folder` holds in one of the three layouts."""
    cases = []
    for images, labels in _FOLDER_PAIRS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            cases += _of_two_folders(folder, folder / images, folder / labels)
    cases += _beside_each_other(folder)
    ct = ct_file(folder)
    if ct is not None:
        named = [p for p in scan_files(folder) if p != ct and _bare(stem(p)) == stem(ct)]
        label = label_file(folder) or (named[0] if len(named) == 1 else None)
        cases.append(_case(folder, ct, label, folder.absolute().name))
    return cases


def read_pair(
    ct_path: Path,
    label_path: Path,
    values: Mapping[int, str] | None,
    case_id: str,
    names: OrganNames,
) -> Drawing:
    """Return a CT with its label's organs; `values` says what they are, None that they are the organ set's.

    Raises:
        ScanError: If the CT is none.
        LabelError: If the label is none, or holds a value that is not known.
    """
    notes = []
    if values is None:
        values = {value: name for name, value in names.labels.items()}
        notes = [f"the label's values were read as those of the organ set {names.organ_set!r}"]
    ct = read_ct(ct_path, image_id=case_id)
    label, _ = read_label(label_path, image_id=case_id, image_grid=ct.grid)
    present = [int(v) for v in np.flatnonzero(np.bincount(label.ravel(), minlength=256)) if v]
    strange = sorted(set(present) - set(values))
    if strange:
        raise LabelError(
            f"{case_id}: the label holds the values {strange}, which name no organ; "
            f"known are {dict(sorted(values.items()))}; say what they are in a labels.json"
        )
    naming = names.sort([values[v] for v in present], case_id)
    by_organ = {naming.organs[values[v]]: v for v in present if values[v] in naming.organs}
    masks = {organ: label == value for organ, value in by_organ.items()}
    return Drawing(ct=ct, masks=masks, naming=naming, notes=notes)


def _of_two_folders(folder: Path, images: Path, labels: Path) -> list[SourceCase]:
    label_of = {_bare(stem(p)): p for p in scan_files(labels)}
    cases = []
    for image in scan_files(images):
        case_id = stem(image).removesuffix("_0000")
        label = label_of.pop(stem(image), None) or label_of.pop(case_id, None)
        cases.append(_case(folder, image, label, case_id))
    return cases + [_without_image(label, case_id) for case_id, label in label_of.items()]


def _without_image(label: Path, case_id: str) -> SourceCase:
    def read(_names: OrganNames) -> Drawing:
        raise ScanError(f"{case_id}: labels has {label.name}, images has no CT of this name")

    return SourceCase(source=SOURCE, case_id=case_id, place=label, inputs=[label], read=read)


def _beside_each_other(folder: Path) -> list[SourceCase]:
    files = {stem(p): p for p in scan_files(folder)}
    pairs = ((name, _bare(name)) for name in files)
    return [
        _case(folder, files[image], files[label], image)
        for label, image in pairs
        if image != label and image in files and image.lower() not in CT_STEMS
    ]


def _bare(name: str) -> str:
    return next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)


def _case(folder: Path, image: Path, label: Path | None, case_id: str) -> SourceCase:
    meaning = meaning_file(folder)
    inputs = [image, *([label] if label else []), *([meaning] if meaning else [])]
    return SourceCase(
        source=SOURCE,
        case_id=case_id,
        place=image,
        inputs=inputs,
        read=None if label is None else partial(_read, image, label, meaning, case_id),
    )


def _read(
    image: Path, label: Path, meaning: Path | None, case_id: str, names: OrganNames
) -> Drawing:
    values = None if meaning is None else _values(meaning, case_id)
    return read_pair(image, label, values, case_id, names)


def meaning_file(folder: Path) -> Path | None:
    """Return the file that says what the values of the labels in `folder` mean."""
    places = (place / name for place in (folder, folder.absolute().parent) for name in _MEANINGS)
    return next((place for place in places if place.is_file()), None)


def _values(path: Path, case_id: str) -> dict[int, str]:
    """Return value -> name, from either way to write it."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        labels: dict[str, Any] = content.get("labels", content)
        if all(isinstance(v, str) for v in labels.values()):
            values = {int(value): str(name) for value, name in labels.items()}
        else:
            values = {int(value): str(name) for name, value in labels.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise LabelError(
            f'{case_id}: {path.name} does not say what the label values mean; {{"labels": {{"Brainstem": 1}}}} '
            f"expected ({error})"
        ) from error
    return {value: name for value, name in values.items() if value}
