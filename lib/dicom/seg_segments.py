"""Segments of a DICOM SEG: their numbers and their names (PS3.3 C.8.20.2)."""

from collections import Counter
from collections.abc import Iterable

from pydicom.dataset import Dataset

from lib.dicom.laterality import name_with_side
from lib.dicom.object_attributes import sequence_items
from lib.dicom.structures import StructureFilter
from lib.errors import LabelError


def segments_of(dataset: Dataset, image_id: str) -> tuple[dict[int, str], list[str]]:
    """Return number -> name of the segments, and changes: names that got the side of their code.

    A name is the segment's label, or the meaning of its code if it has no label.

    Raises:
        LabelError: If the file is no SEG, two segments have one number, or the label and the code of a segment
            contradict each other.
    """
    if dataset.get("Modality") != "SEG":
        raise LabelError(
            f"{image_id}: the file's modality is {dataset.get('Modality', 'unknown')}; SEG expected"
        )
    if "SegmentSequence" not in dataset or "PixelData" not in dataset:
        raise LabelError(f"{image_id}: the SEG is truncated: it has no pixels; export it again")
    names: dict[int, str] = {}
    changes = []
    for segment in sequence_items(dataset, "SegmentSequence"):
        number = int(segment.SegmentNumber)
        codes = [
            *sequence_items(segment, "SegmentedPropertyTypeCodeSequence"),
            *sequence_items(segment, "AnatomicRegionSequence"),
            segment,  # some programs put the modifier here
        ]
        label = str(segment.get("SegmentLabel", "") or "").strip()
        label = label or next((str(c.CodeMeaning) for c in codes if "CodeMeaning" in c), "")
        name = name_with_side(label, codes, f"{image_id}: segment {number}")
        if name != label:
            changes.append(f"segment {number}, {label!r}, read as {name!r}: its code has the side")
        if names.setdefault(number, name) != name:
            raise LabelError(
                f"{image_id}: the segments {names[number]!r} and {name!r} have the same SegmentNumber "
                f"{number}; it is unknown to which of them the frames belong: give each a number of its own, "
                "and export it again"
            )
    return names, changes


def chosen_segments(
    names: dict[int, str], drawn: Iterable[int], select: StructureFilter, image_id: str
) -> tuple[dict[int, str], list[str]]:
    """Return number -> name of the selected segments among those that mark a voxel, and changes.

    Raises:
        LabelError: If two drawn segments that are selected have one name.
    """
    drawn_names = {number: names[number] for number in sorted(drawn)}
    chosen = set(select(tuple(drawn_names.values())))
    times = Counter(drawn_names.values())
    for name in sorted(chosen):
        if times[name] > 1:
            raise LabelError(f"{image_id}: two segments are called {name!r}; rename or join them")
    empty = [repr(name) for number, name in names.items() if number not in drawn_names]
    changes = [f"segments without a voxel: {', '.join(empty)}"] if empty else []
    return {n: name for n, name in drawn_names.items() if name in chosen}, changes
