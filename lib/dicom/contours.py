"""Closed contours of one ROI in voxel indices, and the removal of contours that repeat another one.

Contours of another type, and contours without area, mark nothing: a note counts them.

Programs that export a structure set a second time may write every contour twice, with rounded coordinates, with
more points, or with another start point. Under the even-odd rule such a pair would cancel. Two contours of one
plane are the same if their mean distance is less than `REPEAT_VOX`: a hole leaves a wall that is wider, since a
mask could not show it otherwise. If the two cross each other, neither is the hole of the other, and
`CROSSING_REPEAT_VOX` holds.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.dicom.polygons import centroid, enclosed_area, perimeter
from lib.errors import GeometryError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import FloatArray

MAX_TILT = 0.2
"""Largest spread of the points of a contour along the slices' normal, as a share of the slice distance.

Coordinates rounded to 0.1 mm on an oblique scan of 1 mm slices differ by half of it.
"""

REPEAT_VOX = 0.5
"""Two contours, one inside the other, are the same if their mean distance is smaller, in voxels."""

CROSSING_REPEAT_VOX = 1.0
"""Two contours that cross each other are the same if their mean distance is smaller, in voxels."""

NESTED_TOLERANCE = 0.1
"""A contour lies inside another if less than this part of the area between them is outside the larger one."""

RIM_TOLERANCE = 1e-3
"""Tolerance for a contour along the slice's rim, in voxels: decimal strings are rounded."""

XOR = "CLOSEDPLANAR_XOR"
CLOSED_TYPES = ("CLOSED_PLANAR", XOR)
"""Values of ContourGeometricType (PS3.3 C.8.8.6.1) that enclose an area."""


@dataclass(slots=True)
class Roi:
    """One ROI during reading; `notes` counts special cases among its contours, `doubts` are sentences."""

    name: str
    number: int
    frame: str
    notes: "Counter[str]" = field(default_factory=Counter)
    doubts: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Contour:
    """A closed polygon in a plane parallel to the slices.

    Attributes:
        points_vox: `(N, 2)`, the corners in voxel indices x and y.
        z_vox: Position of the plane.
        tilt_vox: Spread of the corners along the slices' normal.
        is_xor: Whether its type demands the exclusive or with the other contours of its plane.
    """

    points_vox: FloatArray
    z_vox: float
    tilt_vox: float
    is_xor: bool

    @property
    def box(self) -> FloatArray:
        """`(4,)`: the lowest x and y, and the highest x and y."""
        return np.concatenate([self.points_vox.min(axis=0), self.points_vox.max(axis=0)])


def overlaps_any(box: FloatArray, boxes: FloatArray) -> bool:
    """Return whether a bounding box `(4,)` shares an area with one of `boxes` `(N, 4)`."""
    return bool(((box[:2] < boxes[:, 2:]) & (boxes[:, :2] < box[2:])).all(axis=1).any())


def closed_contours(
    items: Iterable[tuple[str, FloatArray]], roi: Roi, grid: Grid, image_id: str
) -> list[Contour]:
    """Return the contours that enclose an area.

    Args:
        items: ContourGeometricType, and the points `(N, 3)` in LPS mm, of each contour.
        roi: The ROI, which receives notes.
        grid: The CT's grid; its z axis runs from slice to slice.
        image_id: For messages.

    Raises:
        GeometryError: If a closed contour is not parallel to the slices, or lies beside them.
    """
    to_voxel = np.linalg.inv(ras_to_lps(grid.affine_ras))
    contours = []
    for kind, points_lps in items:
        if kind not in CLOSED_TYPES:
            roi.notes[f"contours of type {kind} left out"] += 1
            continue
        points = points_lps @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        if len(np.unique(np.round(points, 6), axis=0)) < 3:
            roi.notes["contours of fewer than 3 points left out"] += 1
            continue
        tilt = float(np.ptp(points[:, 2]))
        if tilt > MAX_TILT:
            raise GeometryError(
                f"{image_id}: a contour of {roi.name!r} is not parallel to the slices: it spans "
                f"{tilt * grid.spacing_mm[2]:.1f} mm across them; draw it on the CT's own slices"
            )
        if centroid(points[:, :2]) is None:
            roi.notes["contours without area left out"] += 1
            continue
        _require_inside(points[:, :2], grid.shape_vox[:2], roi, image_id)
        z_vox = float(np.median(points[:, 2]))
        contours.append(Contour(points[:, :2], z_vox, tilt, kind == XOR))
    return contours


def without_repeats(contours: Sequence[Contour], roi: Roi) -> tuple[Contour, ...]:
    """Return the contours of one plane without those that are the same as an earlier one."""
    kept: list[Contour] = []
    boxes = np.empty((len(contours), 4))
    for contour in contours:
        box = contour.box
        distance = np.abs(boxes[: len(kept)] - box).max(axis=1)
        similar = np.flatnonzero(distance <= 2 * CROSSING_REPEAT_VOX)
        if any(_is_repeat(contour.points_vox, kept[i].points_vox) for i in similar):
            roi.notes["contours that repeat another one left out"] += 1
        else:
            boxes[len(kept)] = box
            kept.append(contour)
    return tuple(kept)


def _is_repeat(points_vox: FloatArray, other_vox: FloatArray) -> bool:
    area, other_area = enclosed_area([points_vox]), enclosed_area([other_vox])
    between = enclosed_area([points_vox, other_vox])
    distance = 2 * between / (perimeter(points_vox) + perimeter(other_vox))
    if between - abs(area - other_area) < NESTED_TOLERANCE * between:
        return distance < REPEAT_VOX
    # Two small pieces side by side are close to each other, but share nothing.
    return distance < CROSSING_REPEAT_VOX and between < min(area, other_area)


def _require_inside(points_vox: FloatArray, shape: Sequence[int], roi: Roi, image_id: str) -> None:
    """Raise if a contour lies beside the slice; count it if it reaches over the rim."""
    low, high = points_vox.min(axis=0), points_vox.max(axis=0)
    rim = np.array(shape) - 0.5
    if (high < -0.5).any() or (low > rim).any():
        raise GeometryError(
            f"{image_id}: a contour of {roi.name!r} lies beside the CT's slices; it belongs to another scan "
            "or a larger field of view: export the CT it was drawn on"
        )
    if (low < -0.5 - RIM_TOLERANCE).any() or (high > rim + RIM_TOLERANCE).any():
        roi.notes["contours reach beyond the slice and were cut at its rim"] += 1
