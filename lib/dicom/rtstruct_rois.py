"""ROIs of an RTSTRUCT and their contours, attributed by ROI Number (PS3.3 C.8.8.5, C.8.8.6).

A contour item belongs to the ROI whose ROINumber it refers to. Programs that count wrongly give two ROIs one
number, or refer to numbers that no ROI has: the contours of one organ would then be read as those of another.
A file is read if every attribution is certain, and refused otherwise; the order of items proves nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from lib.dicom.contours import CLOSED_TYPES, Roi
from lib.dicom.laterality import name_with_side
from lib.dicom.object_attributes import referenced_frames, sequence_items
from lib.dicom.structures import StructureFilter
from lib.errors import GeometryError, LabelError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import FloatArray

MAX_COORDINATE_MM = 1e5
"""Largest coordinate of a contour, in mm: 100 m."""

ContourItems = Mapping[int, Sequence[Dataset]]
"""ROI number -> the items of its Contour Sequence."""


def rois_of(dataset: Dataset, image_id: str) -> tuple[list[Roi], list[str]]:
    """Return the ROIs in the order of the file, and changes: names that got the side of their code.

    Raises:
        LabelError: If the file is no RTSTRUCT, or a ROI's name and code contradict each other.
        GeometryError: If it is unknown in which of several frames of reference a ROI lies.
    """
    if dataset.get("Modality") != "RTSTRUCT":
        raise LabelError(
            f"{image_id}: the file's modality is {dataset.get('Modality', 'unknown')}; RTSTRUCT expected"
        )
    codes = _codes(dataset)
    rois, changes = [], []
    for item in sequence_items(dataset, "StructureSetROISequence"):
        number, name = int(item.ROINumber), _name(item)
        full_name = name_with_side(name, codes.get(number, ()), f"{image_id}: ROI {number}")
        if full_name != name:
            changes.append(f"ROI {number}, {name!r}, read as {full_name!r}: its code has the side")
        rois.append(Roi(full_name, number, _frame(item, dataset, image_id)))
    return rois, changes


def roi_names(dataset: Dataset) -> list[tuple[int | None, str]]:
    """Return number and name of each ROI, with the side of its code where it has one; refuses nothing."""
    codes = _codes(dataset)
    names = []
    for item in sequence_items(dataset, "StructureSetROISequence"):
        number, name = item.get("ROINumber"), _name(item)
        with suppress(LabelError):
            name = name_with_side(name, codes.get(number, ()), "")
        names.append((number, name))
    return names


def _name(item: Dataset) -> str:
    return str(item.get("ROIName", "") or "").strip()


def _codes(dataset: Dataset) -> Mapping[int | None, Sequence[Dataset]]:
    """Return ROI number -> the items that code the ROI (PS3.3 C.8.8.8)."""
    codes: defaultdict[int | None, list[Dataset]] = defaultdict(list)
    for observation in sequence_items(dataset, "RTROIObservationsSequence"):
        number = observation.get("ReferencedROINumber")
        if number is not None:
            codes[int(number)] += sequence_items(observation, "RTROIIdentificationCodeSequence")
    return codes


def _frame(item: Dataset, dataset: Dataset, image_id: str) -> str:
    """Return the frame of reference of a ROI: its own, or the only one that the file refers to."""
    own = str(item.get("ReferencedFrameOfReferenceUID", "") or "")
    frames = referenced_frames(dataset)
    if not own and len(frames) > 1:
        raise GeometryError(
            f"{image_id}: ROI {item.get('ROIName', '')!r} names no frame of reference, and the RTSTRUCT refers "
            f"to {len(frames)}; it is unknown which scan it was drawn on: export it with one scan"
        )
    return own or (frames.pop() if frames else "")


def contour_items(
    dataset: Dataset, rois: Sequence[Roi], image_id: str
) -> tuple[ContourItems, list[str]]:
    """Return the contour items of each ROI number that has some, and changes.

    Raises:
        LabelError: If contours cannot be attributed to one ROI.
    """
    items: defaultdict[int, list[Dataset]] = defaultdict(list)
    parts: Counter[int] = Counter()
    for entry in sequence_items(dataset, "ROIContourSequence"):
        contours = sequence_items(entry, "ContourSequence")
        number = int(entry.ReferencedROINumber)
        items[number] += contours
        parts[number] += bool(contours)
    numbers = Counter(roi.number for roi in {(r.number, r.name, r.frame): r for r in rois}.values())
    for number, times in numbers.items():
        if times > 1 and items[number]:
            names = ", ".join(repr(roi.name) for roi in rois if roi.number == number)
            raise LabelError(
                f"{image_id}: the ROIs {names} have the same ROINumber {number}; it is unknown to which of "
                "them the contours belong: give each ROI a number of its own, and export it again"
            )
    changes = []
    has_all = set(numbers) <= set(items)
    for number in [n for n, count in parts.items() if count and (count > 1 or n not in numbers)]:
        problem = (
            f"contours stand in {parts[number]} items for ROI {number}"
            if number in numbers
            else f"contours refer to ROI {number}, which the RTSTRUCT does not describe"
        )
        if not has_all:
            missing = ", ".join(repr(roi.name) for roi in rois if roi.number not in items)
            raise LabelError(
                f"{image_id}: {problem}, while {missing} has no item; it is unknown to which ROI they belong: "
                "export it again"
            )
        changes.append(f"{problem}; {'joined' if number in numbers else 'left out'}")
    return {number: items[number] for number in numbers if items[number]}, changes


def chosen_rois(
    rois: Sequence[Roi], items: ContourItems, select: StructureFilter, image_id: str
) -> tuple[list[Roi], list[str]]:
    """Return the selected ROIs among those that are drawn, and changes.

    Planning templates put an empty ROI of an organ beside the one that is drawn.

    Raises:
        LabelError: If two drawn ROIs that are selected have one name.
    """
    unique = list({(roi.number, roi.name): roi for roi in rois}.values())
    drawn = [roi for roi in unique if any(_is_closed(i) for i in items.get(roi.number, ()))]
    names = [roi.name for roi in drawn]
    chosen = set(select(names))
    duplicates = sorted(name for name in chosen if names.count(name) > 1)
    if duplicates:
        raise LabelError(f"{image_id}: two ROIs are called {duplicates[0]!r}; rename or join them")
    empty = [_undrawn(roi, items.get(roi.number, ())) for roi in unique if roi not in drawn]
    changes = [f"ROIs without a closed contour: {', '.join(empty)}"] if empty else []
    return [roi for roi in drawn if roi.name in chosen], changes


def _undrawn(roi: Roi, items: Sequence[Dataset]) -> str:
    kinds = Counter(str(item.get("ContourGeometricType", "") or "unknown") for item in items)
    others = ", ".join(f"{count} of type {kind}" for kind, count in sorted(kinds.items()))
    return f"{roi.name!r} (only {others})" if others else repr(roi.name)


def _is_closed(item: Dataset) -> bool:
    return item.get("ContourGeometricType") in CLOSED_TYPES and bool(item.get_item("ContourData"))


def points_lps(item: Dataset, roi: Roi, image_id: str) -> FloatArray:
    """Return a contour's points `(N, 3)` in mm.

    The decimal strings are parsed here: pydicom creates an object for each, which takes minutes. Some programs
    end them with a separator.

    Raises:
        LabelError: If they are not numbers, or not three for each point.
    """
    value: Any = getattr(item.get_item("ContourData"), "value", None)
    try:
        if isinstance(value, bytes):
            text = value.strip(b" \0\\")
            if b"_" in text:
                raise ValueError(text)  # Python's float() accepts 1_000
            value = text.split(b"\\") if text else ()
        numbers = np.array(list(value or ()), dtype=float)
    except (TypeError, ValueError) as error:
        raise LabelError(
            f"{image_id}: a contour of {roi.name!r} contains a value that is not a number; export it again"
        ) from error
    if numbers.size % 3 or not np.isfinite(numbers).all():
        raise LabelError(
            f"{image_id}: a contour of {roi.name!r} has {numbers.size} numbers; three finite numbers per point "
            "expected: export it again"
        )
    if numbers.size and np.abs(numbers).max() > MAX_COORDINATE_MM:
        raise LabelError(
            f"{image_id}: a contour of {roi.name!r} has the coordinate {np.abs(numbers).max():.3g} mm; at most "
            f"{MAX_COORDINATE_MM:.0f} mm expected: export it again"
        )
    stated = item.get("NumberOfContourPoints")
    if stated is not None and int(stated) != numbers.size // 3:
        roi.notes["contours with another number of points than stated"] += 1
    return numbers.reshape(-1, 3)


def slice_position_vox(header: Dataset, grid: Grid) -> float:
    """Return the position of a slice along the grid's z axis, in slices."""
    return _z_vox(np.array([header.ImagePositionPatient], dtype=float), grid)


def note_other_slice(
    item: Dataset,
    points: FloatArray,
    roi: Roi,
    positions: Mapping[str, float],
    grid: Grid,
) -> None:
    """Add a note to `roi` if a contour does not lie on the image that it refers to; its coordinates count.

    Args:
        item: The contour, whose ContourImageSequence names the image; it is optional.
        points: `(N, 3)`, its points in LPS mm.
        roi: The ROI.
        positions: SOPInstanceUID -> position of each slice of the CT, in slices.
        grid: The CT's grid.
    """
    images = {
        str(image.get("ReferencedSOPInstanceUID", "") or "")
        for image in sequence_items(item, "ContourImageSequence")
    } - {""}
    if not images or not len(points):
        return
    known = [positions[uid] for uid in images if uid in positions]
    if not known:
        roi.notes["contours refer to images that the CT does not have"] += 1
    elif min(abs(z - _z_vox(points, grid)) for z in known) > 1:
        roi.notes["contours lie more than a slice off the image that they refer to"] += 1


def _z_vox(points_lps: FloatArray, grid: Grid) -> float:
    """Return the mean position of points `(N, 3)` along the grid's z axis, in slices."""
    to_voxel = np.linalg.inv(ras_to_lps(grid.affine_ras))
    return float(to_voxel[2, :3] @ points_lps.mean(axis=0) + to_voxel[2, 3])
