"""Conversion of the contours of one ROI to a mask on the CT.

- `contours` gives the closed contours, `contour_planes` those of each slice.
- A voxel belongs to a ROI if its centre lies inside an odd number of the contours on its slice: a contour
  inside another is a hole, and so is the region that a keyhole contour goes around. `polygons.fill_polygon`
  defines the rule for a centre on an edge.
- Contours that cross each other are neither pieces nor holes. If they share more than `MAX_SHARED` of the
  smaller one, the ROI is refused, unless they are of type CLOSEDPLANAR_XOR.
- A contour that contains no voxel centre marks the voxel of its centroid, so that a structure smaller than a
  voxel is not lost. It never removes a voxel: a hole smaller than a voxel is lost.
- `contour_volume` compares the volume of the mask with that of the contours.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.dicom.contour_planes import planes_by_slice, planes_of, tolerance_vox
from lib.dicom.contour_volume import compare_volumes
from lib.dicom.contours import (
    Contour,
    Roi,
    closed_contours,
    judge_walls,
    overlapping,
    separate_parts,
)
from lib.dicom.polygons import PixelBox, centroid, fill_polygon
from lib.errors import GeometryError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray, MaskArray

MAX_SHARED = 0.5
"""Largest part of the smaller of two crossing contours that both may enclose."""

PROTRUDING_HOLE = 0.9
"""Part of a hole that lies inside the outer contour, at least, if it was drawn over its edge by mistake."""

LARGEST_HOLE = 0.7
"""Largest size of a hole that reaches over the edge, as a share of the outer contour."""

MIN_CROSSING_VOX = 10
"""Number of voxels of a contour from which the rules for crossing contours hold; rounding decides below it."""


@dataclass(frozen=True, slots=True)
class _Filled:
    """A contour's voxels on its slice: mask of a box, and their number."""

    contour: Contour
    box: PixelBox
    inside: MaskArray
    size: int


def mask_from_contours(
    items: Iterable[tuple[str, FloatArray]], roi: Roi, grid: Grid, image_id: str
) -> MaskArray:
    """Return the voxels `(X, Y, Z)` of `grid` that the contours of `roi` mark.

    Args:
        items: ContourGeometricType, and the points `(N, 3)` in LPS mm, of each contour.
        roi: The ROI, which receives notes and doubts.
        grid: The CT's grid; its z axis runs from slice to slice.
        image_id: For messages.

    Raises:
        GeometryError: If a closed contour does not lie in a slice of the scan, two contours of a slice
            contradict each other, or the mask's volume differs grossly from that of the contours.
        LabelError: If there are far too many contours.
    """
    contours = closed_contours(items, roi, grid, image_id)
    tolerance = tolerance_vox(contours, grid)
    parts = [planes_of(part, tolerance, roi) for part in separate_parts(contours)]
    are_xor = all(contour.is_xor for contour in contours)
    judge_walls(roi, sum(map(len, parts)), are_xor=are_xor, image_id=image_id)
    on_slice: defaultdict[int, list[Contour]] = defaultdict(list)
    for planes in parts:
        for z, drawn in planes_by_slice(planes, tolerance, roi, grid, image_id).items():
            on_slice[z] += drawn
    if on_slice:
        empty = max(on_slice) - min(on_slice) + 1 - len(on_slice)
        if empty:
            roi.notes["slices between its contours have none"] = empty
    mask = _draw(on_slice, roi, grid, image_id)
    compare_volumes(mask, parts, roi, grid, image_id, tolerance=tolerance)
    return mask


def _draw(
    on_slice: Mapping[int, Sequence[Contour]], roi: Roi, grid: Grid, image_id: str
) -> MaskArray:
    size_x, size_y, size_z = grid.shape_vox
    mask = np.zeros((size_z, size_y, size_x), np.bool_).transpose(2, 1, 0)  # each slice contiguous
    for z, contours in on_slice.items():
        _draw_slice(mask[:, :, z], contours, roi, f"{image_id}: slice {z + 1}")
    return np.asarray(mask)


def _draw_slice(plane: MaskArray, contours: Sequence[Contour], roi: Roi, where: str) -> None:
    """Mark the pixels of `plane` `(X, Y)` that an odd number of `contours` enclose."""
    filled: list[_Filled] = []
    boxes = np.empty((len(contours), 4))
    small = []
    for contour in contours:
        box, inside = fill_polygon(contour.points_vox, (plane.shape[0], plane.shape[1]))
        if not inside.any():
            small.append(contour)
            continue
        new = _Filled(contour, box, inside, int(np.count_nonzero(inside)))
        near = np.flatnonzero(overlapping(contour.box, boxes[: len(filled)]))
        shared = sum(_crossing_vox(new, filled[i], roi, where) for i in near)
        if shared:
            roi.notes["voxels enclosed by two crossing contours left out"] += shared
        boxes[len(filled)] = contour.box
        filled.append(new)
        plane[box] ^= inside
    for contour in small:
        middle = centroid(contour.points_vox)
        if middle is not None:
            x, y = (
                min(max(int(np.floor(m + 0.5)), 0), side - 1)
                for m, side in zip(middle, plane.shape, strict=True)
            )
            plane[x, y] = True
            roi.notes["contours smaller than a voxel, which mark one each"] += 1


def _crossing_vox(one: _Filled, other: _Filled, roi: Roi, where: str) -> int:
    """Return how many voxels two crossing contours share; 0 if one lies inside the other, or both apart.

    Raises:
        GeometryError: If they share so much that neither two pieces nor a hole can be meant.
    """
    shared = _shared_vox(one, other)
    smaller, larger = sorted((one.size, other.size))
    if shared in (0, smaller) or (one.contour.is_xor and other.contour.is_xor):
        return 0
    is_hole = shared >= PROTRUDING_HOLE * smaller and smaller <= LARGEST_HOLE * larger
    if shared > MAX_SHARED * smaller and smaller >= MIN_CROSSING_VOX and not is_hole:
        raise GeometryError(
            f"{where}: two contours of {roi.name!r} of {larger} and {smaller} voxels cross each other and "
            f"share {shared}; neither two pieces nor a hole can be meant: keep one of them, or join them"
        )
    return shared


def _shared_vox(one: _Filled, other: _Filled) -> int:
    common = [
        (max(a.start, b.start), min(a.stop, b.stop))
        for a, b in zip(one.box, other.box, strict=True)
    ]
    if any(start >= stop for start, stop in common):
        return 0
    here, there = (
        filled.inside[
            tuple(
                slice(start - side.start, stop - side.start)
                for (start, stop), side in zip(common, filled.box, strict=True)
            )
        ]
        for filled in (one, other)
    )
    return int(np.count_nonzero(here & there))
