"""Sides of structures whose name has none: taken from the code of the structure.

Many programs call both parotid glands `Parotid` and tell the side by a modifier of the code (PS3.16 CID 244).
"""

import re
from collections.abc import Sequence

from pydicom.dataset import Dataset

from lib.dicom.object_attributes import sequence_items
from lib.errors import LabelError
from lib.organs.naming import tg263_name
from lib.organs.table import ORGANS

_SIDE_CODES = {"7771000": "Left", "24028007": "Right", "G-A101": "Left", "G-A100": "Right"}
"""SNOMED CT codes, and those of SNOMED RT that older objects have -> side."""

_MODIFIERS = (
    "SegmentedPropertyTypeModifierCodeSequence",
    "AnatomicRegionModifierSequence",
    "PrimaryAnatomicStructureModifierSequence",
)
_SUFFIXES = {"Left": "_L", "Right": "_R"}


def side_in_codes(codes: Sequence[Dataset]) -> str | None:
    """Return `Left` or `Right` if the codes of a structure name one side; None if they name none or both.

    A modifier of the code decides; without one, the words of the code's meaning.
    """
    modifiers = [
        m for code in codes for keyword in _MODIFIERS for m in sequence_items(code, keyword)
    ]
    sides = {side for modifier in modifiers for side in _sides(modifier)}
    if not modifiers:
        sides = {side for code in codes for side in _words(code)}
    return sides.pop() if len(sides) == 1 else None


def _sides(modifier: Dataset) -> set[str]:
    value = str(modifier.get("CodeValue", "") or "")
    return {_SIDE_CODES[value]} if value in _SIDE_CODES else _words(modifier)


def _words(code: Dataset) -> set[str]:
    words = re.findall(r"[a-z]+", str(code.get("CodeMeaning", "") or "").lower())
    return {side for side in _SUFFIXES if side.lower() in words}


def name_with_side(name: str, codes: Sequence[Dataset], where: str) -> str:
    """Return a structure's name, with the side of its code if it means no organ without.

    Args:
        name: The name as it stands in the file.
        codes: The items that code the structure.
        where: Start of the error message: the case, and what the structure is.

    Raises:
        LabelError: If the name means an organ of the other side.
    """
    side = side_in_codes(codes)
    if side is None:
        return name
    organ = tg263_name(name)
    own_side = ORGANS[organ].side if organ else None
    if own_side is not None and own_side != _SUFFIXES[side]:
        raise LabelError(
            f"{where} is called {name!r}, but its code says {side.lower()}; correct one of the two, and "
            "export it again"
        )
    with_side = f"{name} {side}"
    return with_side if organ is None and tg263_name(with_side) else name
