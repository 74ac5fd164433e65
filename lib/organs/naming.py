"""Recognition of organ names, and conversion of a client's label values to those of the organ set.

All other modules use TG-263 names only.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.errors import LabelError
from lib.imaging.quantities import LabelArray
from lib.organs.table import ORGANS

_STEMS: Mapping[str, str] = {
    "brainstem": "Brainstem",
    "bs": "Brainstem",
    "chiasm": "OpticChiasm",
    "opticchiasm": "OpticChiasm",
    "chiasma": "OpticChiasm",
    "mandible": "Bone_Mandible",
    "bonemandible": "Bone_Mandible",
    "opticnerve": "OpticNrv",
    "opticnrv": "OpticNrv",
    "optnerve": "OpticNrv",
    "optnrv": "OpticNrv",
    "parotid": "Parotid",
    "parotidgland": "Parotid",
    "glndparotid": "Parotid",
    "submandibular": "Glnd_Submand",
    "submandibulargland": "Glnd_Submand",
    "glndsubmand": "Glnd_Submand",
    "submand": "Glnd_Submand",
    "submandgland": "Glnd_Submand",
    "spinalcord": "SpinalCord",
    "cord": "SpinalCord",
    "esophagus": "Esophagus",
    "oesophagus": "Esophagus",
    "larynx": "Larynx",
    "brain": "Brain",
    "cochlea": "Cochlea",
    "lacrimal": "Glnd_Lacrimal",
    "lacrimalgland": "Glnd_Lacrimal",
    "glndlacrimal": "Glnd_Lacrimal",
    "lens": "Lens",
    "eyelens": "Lens",
    "lung": "Lung",
    "eye": "Eye",
    "eyeball": "Eye",
    "orbit": "Eye",
    "spinalcanal": "SpinalCanal",
    "vertebralcanal": "SpinalCanal",
}
"""Letters of a name without its side, in lower case -> TG-263 name without its side.

Nikolov et al. contour the eyeball and call it orbit, after the atlas of Brouwer et al. 2015.
"""

_ANOTHER_STRUCTURE = re.compile(r"[0-9~+!*%^]")
"""Characters that mark a margin, a part or a version: `Cord+5`, `SpinalCord_PRV05`, `Parotid_L~`."""

_SIDES = {"l": "_L", "lt": "_L", "left": "_L", "r": "_R", "rt": "_R", "right": "_R"}


def tg263_name(spelling: str) -> str | None:
    """Return the TG-263 name that `spelling` means, None if it is not in the organ table.

    Recognises PDDCA (`OpticNerve_L`), OpenKBP (`RightParotid`), Nikolov et al. (`Optic-Nerve-Lt`) and free
    spellings: case, `-`, `_` and spaces do not matter. Digits matter: `SpinalCord_05` is a margin, not the
    cord.
    """
    if any(c.isdigit() for c in spelling):
        return None
    words = [w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", spelling)]
    sides = [_SIDES[w] for w in words if w in _SIDES]
    stem = "".join(w for w in words if w not in _SIDES)
    if not sides and stem not in _STEMS:
        # `rightparotid`: without capital or space, the side can only be found as a prefix or suffix.
        sides = [_SIDES[side] for side in ("left", "right") if side in stem]
        stem = stem.removeprefix("left").removeprefix("right")
        stem = stem.removesuffix("left").removesuffix("right")
    if len(sides) > 1:
        return None
    name = _STEMS.get(stem, "") + "".join(sides)
    return name if name in ORGANS else None


def organ_of_structure(name: str) -> str | None:
    """Return the TG-263 name of a ROI or segment that is a whole organ without margin.

    None if it is not in the organ table, or is a part, a margin or a version of an organ.
    """
    return None if _ANOTHER_STRUCTURE.search(name) else tg263_name(name)


def to_organ_values(
    array: LabelArray,
    label_info: Sequence[Mapping[str, Any]],
    labels: Mapping[str, int],
    image_id: str,
) -> LabelArray:
    """Return `array` with the values of `labels`, from a client's own numbering of its segments.

    3D Slicer sends `[{"name", "idx"}]`: the voxel values are 1, 2, 3 in the list's order, while `idx` also
    counts segments that are not in the file. For other clients `idx` is the voxel value. If both readings give
    the same organs, or only one fits the voxels, it is used. If both fit and differ, the label is refused.

    Args:
        array: `(X, Y, Z)`, the client's values.
        label_info: The client's description of the values; if empty, they must be those of `labels`.
        labels: TG-263 name -> value in the organ set.
        image_id: Id of the scan, for messages.

    Raises:
        LabelError: If a voxel value or segment name is unknown, or the list is ambiguous.
    """
    present = sorted(int(v) for v in np.unique(array) if v)
    if not label_info:
        unknown = sorted(set(present) - set(labels.values()))
        if unknown:
            raise LabelError(
                f"{image_id}: the label holds the values {unknown}, which name no organ; expected "
                f"{dict(labels)}, or label_info with a name for each value"
            )
        return array
    spellings = [str(entry.get("name", "")) for entry in label_info]
    by_value = {_index(e, image_id): n for e, n in zip(label_info, spellings, strict=True)}
    by_order = dict(enumerate(spellings, start=1))
    fitting = [r for r in (by_value, by_order) if set(present) <= set(r)]
    if not fitting:
        raise LabelError(
            f"{image_id}: the label holds the values {present}, label_info names {by_value}; "
            "every value needs a name"
        )
    readings = [{v: reading[v] for v in present} for reading in fitting]
    if len(readings) == 2 and readings[0] != readings[1]:
        raise LabelError(
            f"{image_id}: the values {present} can be read as {readings[0]} or, by the list's order, as "
            f"{readings[1]}; send the list without segments that are not in the file"
        )
    table = np.zeros(256, np.uint8)
    for value, name in _organ_names(readings[0], labels, image_id).items():
        table[value] = labels[name]
    return np.asarray(table[array])


def _organ_names(
    reading: Mapping[int, str], labels: Mapping[str, int], image_id: str
) -> dict[int, str]:
    """Return value -> TG-263 name of the segments that have a voxel."""
    names: dict[int, str] = {}
    for value, spelling in reading.items():
        name = spelling if spelling in labels else tg263_name(spelling)
        if name is None or name not in labels:
            raise LabelError(
                f"{image_id}: {spelling!r} is not an organ of this server; its organs are {', '.join(labels)}"
            )
        if name in names.values():
            raise LabelError(f"{image_id}: two segments mean {name}; join them or rename one")
        names[value] = name
    return names


def _index(entry: Mapping[str, Any], image_id: str) -> int:
    try:
        return int(entry["idx"] if "idx" in entry else entry["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise LabelError(
            f"{image_id}: label_info entry {dict(entry)} has no number 'idx'; expected "
            '{"name": "Brainstem", "idx": 1}'
        ) from error
