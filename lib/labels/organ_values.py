"""Conversion of a submitted label to this server's organs and values.

The names of the values are those in the file, if it has names, else those that the client sent (`label_info`),
else those of the organ set. A sentence describes each difference between what was sent and what is stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import LabelError
from lib.imaging.geometry import Grid
from lib.imaging.named_labels import NamedLabel, read_named_label
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_label
from lib.imaging.volumes import LabelVolume
from lib.organs.changes import listed, shown
from lib.organs.label_files import NO_ORGANS, by_names


@dataclass(frozen=True, slots=True)
class ClientSegment:
    """One entry of `label_info`.

    Attributes:
        name: Name of the segment.
        idx: Number that the client gives it.
    """

    name: str
    idx: int


def client_segments(label_info: object, image_id: str) -> list[ClientSegment]:
    """Return the entries of a client's `label_info`.

    Raises:
        LabelError: If it is not a list of objects with a name and a number, or two entries have one number.
    """
    if not isinstance(label_info, Sequence) or isinstance(label_info, str):
        raise LabelError(
            f"{image_id}: label_info is {type(label_info).__name__}; a list such as "
            '[{"name": "Brainstem", "idx": 1}] expected'
        )
    segments = [_client_segment(entry, image_id) for entry in label_info]
    by_idx: dict[int, str] = {}
    for segment in segments:
        if segment.idx in by_idx:
            raise LabelError(
                f"{image_id}: label_info gives the number {segment.idx} to {shown(by_idx[segment.idx])} and "
                f"to {shown(segment.name)}; a number of its own for each segment expected"
            )
        by_idx[segment.idx] = segment.name
    return segments


def read_organs(
    file: Path,
    *,
    image_id: str,
    grid: Grid,
    label_info: object,
    labels: Mapping[str, int],
) -> tuple[LabelVolume, tuple[str, ...]]:
    """Return the label in a file with the values of `labels`, and a sentence for each change made to it.

    3D Slicer sends `label_info` as `[{"name", "idx"}]`. The voxel values are 1, 2, 3 in the list's order, while
    `idx` also counts segments that are not in the file. For other clients `idx` is the voxel value. If both
    readings give the same organs, or only one fits the voxels, it is used. If both fit and differ, the label is
    refused. Names in the file decide before the order of the list, and must not contradict its names.

    Args:
        file: The label.
        image_id: Id of the scan, for messages.
        grid: Grid of the scan.
        label_info: The client's description of the values; empty if there is none.
        labels: TG-263 name -> value on this server.

    Raises:
        LabelError: If a voxel value or a name is unknown, or the names are ambiguous or contradictory.
        GeometryError: If the label does not lie on the scan's grid.
    """
    segments = client_segments(label_info, image_id)
    named = read_named_label(file, image_id=image_id, image_grid=grid, integers_only=True)
    if named is not None:
        changes = [*named.changes, *_require_agreement(named, segments, image_id)]
        return by_names(
            named.layers, named.present, labels, grid, image_id=image_id, changes=changes
        )
    array, _ = read_label(file, image_id=image_id, image_grid=grid, integers_only=True)
    if not segments:
        _require_known_values(array, labels, image_id)
        return LabelVolume(array, grid, labels), ()
    names, changes = _names_of_values(array, segments, image_id)
    places = {(0, value): name for value, name in names.items()}
    return by_names((array,), places, labels, grid, image_id=image_id, changes=changes)


def _require_known_values(array: LabelArray, labels: Mapping[str, int], image_id: str) -> None:
    unknown = sorted(set(_present(array)) - set(labels.values()))
    if unknown:
        raise LabelError(
            f"{image_id}: the label holds the values {unknown}, which name no organ; expected "
            f"{dict(labels)}, or label_info with a name for each value"
        )


def _require_agreement(
    named: NamedLabel, segments: Sequence[ClientSegment], image_id: str
) -> list[str]:
    """Return the changes by reading the file's names instead of `label_info`.

    Raises:
        LabelError: If the two have different names, or numbers that cannot be the rows of a list.
    """
    if not segments:
        return []
    sent = {segment.name for segment in segments}
    drawn = {name for name in named.present.values() if name not in NO_ORGANS}
    if not drawn <= sent or not sent <= set(named.listed):
        raise LabelError(
            f"{image_id}: the file names its segments {listed(named.listed)}, label_info names "
            f"{listed(sorted(sent))}; equal names expected: submit the file without label_info, or correct it"
        )
    numbers = {segment.name: segment.idx for segment in segments}
    differing = {n: v for (_, v), n in named.present.items() if numbers.get(n, v) != v}
    if not differing:
        return []
    if not _may_be_rows(segments):
        raise LabelError(
            f"{image_id}: the file has the values {_text(differing)}, label_info {_text(numbers)}; equal "
            "values expected: submit the file without label_info, or correct it"
        )
    return ["the numbers in label_info are those of a list; the values in the file were used"]


def _may_be_rows(segments: Sequence[ClientSegment]) -> bool:
    """Return whether the numbers can be rows of a table of segments, of which some are left out."""
    numbers = [segment.idx for segment in segments]
    return numbers == sorted(numbers) and all(idx >= row for row, idx in enumerate(numbers, 1))


def _names_of_values(
    array: LabelArray, segments: Sequence[ClientSegment], image_id: str
) -> tuple[dict[int, str], list[str]]:
    """Return value -> name for the values in `array`, and the changes by this reading."""
    present = _present(array)
    by_value = {segment.idx: segment.name for segment in segments}
    by_order = {row: segment.name for row, segment in enumerate(segments, start=1)}
    readings = [by_value, by_order] if _may_be_rows(segments) else [by_value]
    fitting = [{v: r[v] for v in present} for r in readings if set(present) <= set(r)]
    if not fitting:
        raise LabelError(
            f"{image_id}: the label holds the values {present}, label_info names {_text(by_value)}; "
            "every value needs a name"
        )
    if len(fitting) == 2 and fitting[0] != fitting[1]:
        raise LabelError(
            f"{image_id}: the values {present} can be read as {_text(fitting[0])} or, by the list's order, as "
            f"{_text(fitting[1])}; send the list without segments that are not in the file"
        )
    is_by_value = set(present) <= set(by_value)
    order = "the values were read as the order of the segments in label_info"
    return fitting[0], [] if is_by_value else [order]


def _client_segment(entry: object, image_id: str) -> ClientSegment:
    about: Mapping[Any, Any] = entry if isinstance(entry, Mapping) else {}
    name, idx = about.get("name"), about.get("idx", about.get("id"))
    if isinstance(idx, str) and idx.strip().isdecimal():
        idx = int(idx)
    if isinstance(idx, float) and idx.is_integer():
        idx = int(idx)
    if not isinstance(name, str) or not isinstance(idx, int) or isinstance(idx, bool):
        raise LabelError(
            f"{image_id}: label_info entry {str(entry)[:200]} has no text 'name' and whole number 'idx'; "
            'expected {"name": "Brainstem", "idx": 1}'
        )
    return ClientSegment(name, idx)


def _present(array: LabelArray) -> list[int]:
    counts = np.bincount(array.ravel(order="K"), minlength=256)
    return [int(value) for value in np.flatnonzero(counts) if value]


def _text(names: Mapping[Any, Any]) -> str:
    return str(dict(names))[:1000]
