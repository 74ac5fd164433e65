"""Organs in the words of DICOM: codes of SNOMED CT, and colours."""

from pydicom.dataset import Dataset

from lib.errors import LabelError
from lib.organs.table import LATERALITY, ORGANS, Organ

ANATOMICAL_STRUCTURE = ("123037004", "Anatomical Structure")
"""Of the segmentation property categories (PS3.16 CID 7150)."""

_WHITE_D65 = (0.950456, 1.0, 1.088754)
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


def organ_of(name: str, image_id: str) -> Organ:
    """Return the organ called `name`.

    Raises:
        LabelError: If our table has none.
    """
    if name not in ORGANS:
        raise LabelError(
            f"{image_id}: {name!r} has no code and no colour in lib/organs/table.py; it has {', '.join(ORGANS)}"
        )
    return ORGANS[name]


def code(value: str, meaning: str) -> Dataset:
    """Return an item of a code sequence, of SNOMED CT (PS3.3 section 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def category_code() -> Dataset:
    """Return the property category of every organ."""
    return code(*ANATOMICAL_STRUCTURE)


def organ_code(organ: Organ) -> Dataset:
    """Return an organ's code, with its side as SegmentedPropertyTypeModifierCodeSequence."""
    item = code(organ.snomed_code, organ.snomed_meaning)
    if organ.side is not None:
        item.SegmentedPropertyTypeModifierCodeSequence = [code(*LATERALITY[organ.side])]
    return item


def cielab(colour_rgb: tuple[int, int, int]) -> list[int]:
    """Return RecommendedDisplayCIELabValue of an sRGB colour (PS3.3 section C.10.7.1.1).

    With the white of sRGB, D65, as OHIF, 3D Slicer and DCMTK read it; the profile connection space that the
    standard names has D50, with which these would show another colour.
    """
    linear = [_linear(c / 255) for c in colour_rgb]
    x, y, z = (
        _cube_root(sum(w * c for w, c in zip(row, linear, strict=True)) / white)
        for row, white in zip(_TO_XYZ, _WHITE_D65, strict=True)
    )
    lightness, a, b = 116 * y - 16, 500 * (x - y), 200 * (y - z)
    scaled = (lightness / 100, (a + 128) / 255, (b + 128) / 255)
    return [min(max(round(v * 65535), 0), 65535) for v in scaled]


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def _cube_root(value: float) -> float:
    return float(value ** (1 / 3)) if value > (6 / 29) ** 3 else value * 841 / 108 + 4 / 29
