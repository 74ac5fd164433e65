"""Segments that a label file names itself: their names, values and layers, from the text of its header.

- 3D Slicer's `.seg.nrrd`: the fields `SegmentN_Name`, `SegmentN_LabelValue` and `SegmentN_Layer`; also in an
  NRRD or MHA file to which ITK copied them. Files of Slicer before 4.11 have a layer for each segment and no
  values.
- MITK's multilabel NRRD: `org.mitk.multilabel.segmentation.labelgroups`, a JSON list of groups (layers).
- TotalSegmentator's NIfTI: a label table in an extension of the header, in the XML of Connectome Workbench.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from operator import index
from pathlib import Path
from typing import Any
from xml.sax.saxutils import unescape

from lib.errors import LabelError
from lib.imaging.formats import suffix_of

HEADER_BYTES = 2**20
"""Largest number of bytes in which a header is searched for names."""
_SLICER_FIELD = re.compile(r"Segment(\d{1,4})_(Name|LabelValue|Layer)")
_MITK_FIELD = "org.mitk.multilabel.segmentation.labelgroups"
_CARET_LABEL = re.compile(
    r"<Label [^<>]{0,200}?\bKey=[\"'](\d{1,4})[\"'][^<>]{0,200}>"
    r"\s{0,20}(?:<!\[CDATA\[([^\]]{0,200})\]\]>|([^<]{0,200}))\s{0,20}</Label>"
)
"""A row of a label table; its lengths are bounded, so that a search takes a time in proportion to the text."""
_MAX_SEGMENTS = 1000
_MAX_NAME = 200
"""Number of characters that are kept of a name."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that a file names.

    Attributes:
        name: Name of the segment, as it is in the file.
        value: Value of its voxels, 1 to 255.
        layer: Number of the layer that holds it; segments of one layer do not overlap.
    """

    name: str
    value: int
    layer: int = 0


def named_segments(path: Path, image_id: str) -> tuple[Segment, ...]:
    """Return the segments that a label file names, in its order; empty if it names none.

    Only the beginning of the file is read, as text; whether the file is a volume is checked by its reader.

    Raises:
        LabelError: If the names are contradictory: two of one value, or a value that is not a number from 1
            to 255.
    """
    try:
        segments = tuple(islice(_segments(path), _MAX_SEGMENTS + 1))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error)[:_MAX_NAME]
        raise LabelError(
            f"{image_id}: the names of the segments in the file cannot be read ({reason}); export it again"
        ) from error
    if len(segments) > _MAX_SEGMENTS:
        raise LabelError(
            f"{image_id}: the file names more than {_MAX_SEGMENTS} segments; export the organs alone"
        )
    wrong = [f"{s.name!r} ({str(s.value)[:20]})" for s in segments if not 1 <= s.value <= 255]
    if wrong:
        raise LabelError(
            f"{image_id}: the file gives {', '.join(wrong[:5])} as values of segments; 1 to 255 expected"
        )
    by_place: dict[tuple[int, int], str] = {}
    for segment in segments:
        place = (segment.layer, segment.value)
        if place in by_place:
            raise LabelError(
                f"{image_id}: the file names both {by_place[place]!r} and {segment.name!r} for the value "
                f"{segment.value}; export it again"
            )
        by_place[place] = segment.name
    return segments


def cropped_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape `(X, Y, Z)` of a segmentation that 3D Slicer cropped; None if the file is another one.

    Slicer writes the first voxel of the part as `Segmentation_ReferenceImageExtentOffset`.
    """
    if suffix_of(path) != ".nrrd":
        return None
    fields = header_fields(_start(path))
    try:
        sizes = tuple(int(size) for size in fields["sizes"].split())[-3:]
    except (KeyError, ValueError):
        return None
    return sizes if "Segmentation_ReferenceImageExtentOffset" in fields else None


def _segments(path: Path) -> Iterator[Segment]:
    suffix = suffix_of(path) or ""
    if suffix.startswith(".nii"):
        yield from _of_nifti(_start(path))
        return
    if suffix not in (".nrrd", ".mha"):
        return
    fields = header_fields(_start(path))
    if _MITK_FIELD in fields:
        yield from _of_mitk(json.loads(fields[_MITK_FIELD]))
    else:
        yield from _of_slicer(fields)


def _start(path: Path) -> bytes:
    """Return the beginning of a file, unpacked; empty if it cannot be read, which its reader reports."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            return bytes(file.read(HEADER_BYTES))
    except (OSError, EOFError, zlib.error):
        return b""


def header_fields(start: bytes) -> dict[str, str]:
    """Return the fields and the key/value pairs of an NRRD or MetaImage header, by their keys.

    Args:
        start: The beginning of the file.
    """
    is_nrrd = start.startswith(b"NRRD")
    head = start.replace(b"\r\n", b"\n")
    if is_nrrd:
        head = head.partition(b"\n\n")[0]
    fields: dict[str, str] = {}
    for line in head.decode("utf-8", errors="replace").split("\n"):
        # In NRRD `key:=value` is a pair and `key: value` a field; MetaImage has `key = value`.
        key, separator, value = line.partition(":" if is_nrrd else "=")
        if separator and not line.startswith("#"):
            fields.setdefault(key.strip(), value.removeprefix("=" if is_nrrd else "").strip())
        if key.strip() == "ElementDataFile":
            break
    return fields


def _of_slicer(fields: Mapping[str, str]) -> Iterator[Segment]:
    by_number: dict[int, dict[str, str]] = {}
    for key, value in fields.items():
        match = _SLICER_FIELD.fullmatch(key)
        if match:
            by_number.setdefault(int(match[1]), {})[match[2]] = value
    named = {number: about for number, about in sorted(by_number.items()) if "Name" in about}
    has_values = any("LabelValue" in about for about in named.values())
    for order, (number, about) in enumerate(named.items()):
        if has_values and "LabelValue" not in about:
            raise ValueError(f"Segment{number} has a name and no LabelValue")
        layer = about.get("Layer", "0" if has_values else str(order))
        yield Segment(about["Name"][:_MAX_NAME], int(about.get("LabelValue", "1")), int(layer))


def _of_mitk(groups: list[dict[str, Any]]) -> Iterator[Segment]:
    for layer, group in enumerate(groups):
        for label in group["labels"] or ():
            yield Segment(str(label["name"])[:_MAX_NAME], index(label["value"]), layer)


def _of_nifti(start: bytes) -> Iterator[Segment]:
    begin, end = start.find(b"<LabelTable"), start.find(b"</LabelTable>")
    for key, data, text in _CARET_LABEL.findall(start[max(begin, 0) : max(end, 0)].decode()):
        # Key 0 is the background in such tables.
        if int(key):
            yield Segment((data or unescape(text)).strip(), int(key))
