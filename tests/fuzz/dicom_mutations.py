"""Random changes of the attributes of a DICOM file; the result may be no DICOM file any more."""

import copy
import io
import random
import warnings
from collections.abc import Callable

import pydicom
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

NUMBERS = (
    "0", "-1", "1", "2", "12000", "65535", "99", "1e38", "nan", "inf", "-inf", "1e-300", "x", "",
    "1\\2\\3\\4\\5\\6\\7",
)  # fmt: skip
TEXTS = (
    "", "\\", "a" * 70, "a" * 5000, "\xff\xfe", "\0", "1.2.3", "1." * 40, "../outside/x",
    "DERIVED\\SECONDARY", "MR", "CT", "SEG", "RTSTRUCT", "ISO_IR 192", "\x1b$B", "MONOCHROME1", "RGB",
    "PALETTE COLOR", "POINT", "FRACTIONAL",
)  # fmt: skip
INTEGERS = (
    0, 1, 2, 7, 8, 12, 16, 32, 64, 99, 255, 12000, 32767, 65535,
)  # fmt: skip
SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.100", "1.2.3",
)  # fmt: skip
IMPORTANT = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PixelData", "NumberOfFrames", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
    "RescaleSlope", "RescaleIntercept", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID",
    "StudyInstanceUID", "Modality", "SpecificCharacterSet", "SegmentSequence",
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "SegmentationType",
    "ROIContourSequence", "StructureSetROISequence", "ReferencedFrameOfReferenceSequence",
)  # fmt: skip
_INTEGER_VRS = (
    "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "OB or OW", "US or SS",
)  # fmt: skip


def changed_dataset(content: bytes, chance: random.Random) -> bytes:
    """Return a DICOM file with a changed attribute; unchanged if it cannot be read or written."""
    target = io.BytesIO()
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(content), force=True)
            chance.choice(_CHANGES)(dataset, chance)
            dataset.save_as(target, enforce_file_format=False)
    except Exception:  # noqa: BLE001 - pydicom fails in many ways on what it is asked to write
        start = chance.randrange(len(content) or 1)
        return content[:start] + chance.randbytes(4) + content[start + 4 :]
    return target.getvalue()


def _some_level(dataset: Dataset, chance: random.Random) -> Dataset:
    """Return the dataset or an item in one of its sequences."""
    level = dataset
    for _ in range(chance.choice((0, 0, 1, 2, 3))):
        items = [item for element in level if element.VR == "SQ" for item in element.value]
        if not items:
            break
        level = chance.choice(items)
    return level


def _some_element(dataset: Dataset, chance: random.Random) -> tuple[Dataset, DataElement]:
    known = [name for name in IMPORTANT if name in dataset]
    if known and chance.random() < 0.5:
        return dataset, dataset[chance.choice(known)]
    level = _some_level(dataset, chance)
    return level, level[chance.choice(list(level.keys()))]


def _set_value(dataset: Dataset, chance: random.Random) -> None:
    level, element = _some_element(dataset, chance)
    if element.VR == "SQ":
        level[element.tag] = DataElement(element.tag, "SQ", Sequence())
    elif element.VR in _INTEGER_VRS:
        element.value = chance.choice(INTEGERS)
    elif element.VR in ("DS", "IS"):
        words = str(element.value).strip("[]").split(", ")
        words[chance.randrange(len(words))] = chance.choice(NUMBERS)
        level[element.tag] = DataElement(element.tag, "LO", "\\".join(words))
        level[element.tag].VR = element.VR
    elif isinstance(element.value, bytes):
        size = chance.choice((0, 1, 2, 10, len(element.value) // 2, len(element.value) + 2))
        element.value = (element.value + bytes(2))[:size]
    else:
        element.value = chance.choice(TEXTS)


def _remove(dataset: Dataset, chance: random.Random) -> None:
    level, element = _some_element(dataset, chance)
    del level[element.tag]


def _empty(dataset: Dataset, chance: random.Random) -> None:
    level, element = _some_element(dataset, chance)
    level[element.tag] = DataElement(element.tag, element.VR, None)


def _change_vr(dataset: Dataset, chance: random.Random) -> None:
    _, element = _some_element(dataset, chance)
    element.VR = chance.choice(
        ("UN", "OB", "OW", "LO", "SQ", "DS", "IS", "US", "FD", "AT", "UI", "PN")
    )


def _copy_element(dataset: Dataset, chance: random.Random) -> None:
    _, element = _some_element(dataset, chance)
    level, other = _some_element(dataset, chance)
    if element.VR != "SQ":  # which could then contain itself
        level[other.tag] = DataElement(other.tag, element.VR, element.value)


def _nest(dataset: Dataset, chance: random.Random) -> None:
    item = Dataset()
    for _ in range(chance.choice((1, 10, 60, 200))):
        outer = Dataset()
        outer.ContentSequence = Sequence([item])
        item = outer
    dataset.ContentSequence = item.ContentSequence


def _repeat_items(dataset: Dataset, chance: random.Random) -> None:
    level = _some_level(dataset, chance)
    sequences = [element for element in level if element.VR == "SQ" and element.value]
    if sequences:
        element = chance.choice(sequences)
        copies = [copy.deepcopy(item) for item in element.value[:20]]
        level[element.tag].value = [*element.value, *copies]


def _change_syntax(dataset: Dataset, chance: random.Random) -> None:
    dataset.file_meta[Tag(0x0002, 0x0010)].value = chance.choice(SYNTAXES)


def _add_private(dataset: Dataset, chance: random.Random) -> None:
    tag = Tag(chance.choice((0x0009, 0x0029, 0x7FDF)), chance.choice((0x0010, 0x1001)))
    dataset[tag] = DataElement(tag, "UN", chance.randbytes(64))


_CHANGES: tuple[Callable[[Dataset, random.Random], None], ...] = (
    *[_set_value] * 4, _remove, _empty, _change_vr, _copy_element, _nest, _repeat_items, _change_syntax,
    _add_private,
)  # fmt: skip
