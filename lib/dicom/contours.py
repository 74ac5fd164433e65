"""Closed contours of one ROI in voxel indices, and the removal of contours that repeat another one.

Contours of another type, and contours without area, mark nothing: a note counts them.

Programs that export a structure set a second time may write every contour twice, with rounded coordinates, with
more points, or with another start point. Under the even-odd rule such a pair would cancel. Two contours of one
plane are the same if their mean distance is less than `REPEAT_VOX`: a hole leaves a wall that is wider, since a
mask could not show it otherwise. If the two cross each other, neither is the hole of the other, and
`CROSSING_REPEAT_VOX` holds. Walls below `MIN_WALL_VOX` on most planes are refused: the inner contour may be a
second outline, smoothed or drawn through the centres of voxels. Up to `NARROW_VOX`, a doubt tells of them.
Contours of type CLOSEDPLANAR_XOR are holes by definition.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.dicom.polygons import centroid, enclosed_area, perimeter
from lib.errors import GeometryError, LabelError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import FloatArray, MaskArray

MAX_TILT = 0.2
"""Largest spread of the points of a contour along the slices' normal, as a share of the slice distance.

Coordinates rounded to 0.1 mm on an oblique scan of 1 mm slices differ by half of it.
"""

MAX_CONTOURS = 20_000
"""Largest number of contours of a ROI: the time grows with its square."""

REPEAT_VOX = 0.5
"""Two contours, one inside the other, are the same if their mean distance is smaller, in voxels."""

NARROW_VOX = 1.5
"""A doubt tells of holes that leave a wall narrower than this, in voxels."""

FEW_PLANES = 0.1
"""Share of the planes up to which narrow walls are no matter: contours become small at the ends of an organ."""

MIN_WALL_VOX = 0.9
"""Smallest mean width of the wall that a hole leaves, in voxels."""

CROSSING_REPEAT_VOX = 1.0
"""Two contours that cross each other are the same if their mean distance is smaller, in voxels."""

NESTED_TOLERANCE = 0.1
"""A contour lies inside another if less than this part of the area between them is outside the larger one."""

ROUNDING_VOX = 0.1
"""Mean distance of contours of type CLOSEDPLANAR_XOR that are the same, in voxels."""

RIM_TOLERANCE = 1e-3
"""Tolerance for a contour along the slice's rim, in voxels: decimal strings are rounded."""

XOR = "CLOSEDPLANAR_XOR"
CLOSED_TYPES = ("CLOSED_PLANAR", XOR)
"""Values of ContourGeometricType (PS3.3 C.8.8.6.1) that enclose an area."""


@dataclass(slots=True)
class Roi:
    """One ROI during reading.

    Attributes:
        name: ROIName, with the side of its code.
        number: ROINumber.
        frame: UID of its frame of reference; empty if unknown.
        notes: Counts of special cases among its contours.
        doubts: Sentences on what the user should check.
        walls_vox: Width of the narrowest wall of each plane with a wall below `NARROW_VOX`.
    """

    name: str
    number: int
    frame: str
    notes: "Counter[str]" = field(default_factory=Counter)
    doubts: list[str] = field(default_factory=list)
    walls_vox: list[float] = field(default_factory=list)


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


def overlapping(box: FloatArray, boxes: FloatArray) -> MaskArray:
    """Return, for each of `boxes` `(N, 4)`, whether it shares an area with `box` `(4,)`."""
    return np.asarray(((box[:2] < boxes[:, 2:]) & (boxes[:, :2] < box[2:])).all(axis=1))


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
        LabelError: If there are more than `MAX_CONTOURS`.
    """
    to_voxel = np.linalg.inv(ras_to_lps(grid.affine_ras))
    contours: list[Contour] = []
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
        if len(contours) == MAX_CONTOURS:
            raise LabelError(
                f"{image_id}: {roi.name!r} has more than {MAX_CONTOURS} contours; simplify it"
            )
        z_vox = float(np.median(points[:, 2]))
        contours.append(Contour(points[:, :2], z_vox, tilt, kind == XOR))
    return contours


def separate_parts(contours: Sequence[Contour]) -> list[list[Contour]]:
    """Return the contours in parts that lie beside each other, seen along the slices' normal.

    Each part may be drawn on planes of its own: two lungs in one ROI, for example.
    """
    boxes = np.array([contour.box for contour in contours]).reshape(-1, 4)
    is_left = np.ones(len(contours), np.bool_)
    parts = []
    for start in range(len(contours)):
        if not is_left[start]:
            continue
        is_left[start] = False
        part, checked = [start], 0
        while checked < len(part):
            found = np.flatnonzero(overlapping(boxes[part[checked]], boxes) & is_left)
            is_left[found] = False
            part += found.tolist()
            checked += 1
        parts.append([contours[i] for i in sorted(part)])
    return parts


def without_repeats(contours: Sequence[Contour], roi: Roi) -> tuple[Contour, ...]:
    """Return the contours of one plane without those that are the same as an earlier one."""
    kept: list[Contour] = []
    boxes = np.empty((len(contours), 4))
    walls = []
    for contour in contours:
        box = contour.box
        is_similar = np.abs(boxes[: len(kept)] - box).max(axis=1) <= 2 * NARROW_VOX
        is_similar &= overlapping(box, boxes[: len(kept)])
        similar = [kept[i] for i in np.flatnonzero(is_similar).tolist()]
        widths = [_wall_vox(contour, other) for other in similar]
        if None in widths:
            roi.notes["contours that repeat another one left out"] += 1
            continue
        walls += [width for width in widths if width]
        boxes[len(kept)] = box
        kept.append(contour)
    if walls and min(walls) < NARROW_VOX:
        roi.walls_vox.append(min(walls))
    return tuple(kept)


def _wall_vox(contour: Contour, other: Contour) -> float | None:
    """Return the mean width of the wall between two contours, 0 if there is none, None if they are the same."""
    area, other_area = (enclosed_area([c.points_vox]) for c in (contour, other))
    between = enclosed_area([contour.points_vox, other.points_vox])
    width = 2 * between / (perimeter(contour.points_vox) + perimeter(other.points_vox))
    if between - abs(area - other_area) < NESTED_TOLERANCE * between:
        is_hole = contour.is_xor and other.is_xor and width > ROUNDING_VOX
        return width if width >= REPEAT_VOX or is_hole else None
    # Two small pieces side by side are close to each other, but share nothing.
    return None if width < CROSSING_REPEAT_VOX and between < min(area, other_area) else 0.0


def judge_walls(roi: Roi, planes: int, *, are_xor: bool, image_id: str) -> None:
    """Add a doubt if holes leave narrow walls.

    Args:
        roi: The ROI, after `without_repeats` for each of its planes.
        planes: Number of its planes.
        are_xor: Whether its contours are of type CLOSEDPLANAR_XOR.
        image_id: For messages.

    Raises:
        GeometryError: If most planes have a wall below `MIN_WALL_VOX`.
    """
    if are_xor or len(roi.walls_vox) <= FEW_PLANES * planes:
        return
    below = [width for width in roi.walls_vox if width < MIN_WALL_VOX]
    if len(below) > planes / 2:
        raise GeometryError(
            f"{image_id}: {roi.name!r} has two outlines on {len(below)} of {planes} planes, one inside the "
            f"other, {np.median(below):.1f} voxels apart: a hole leaves a wall "
            "of a voxel or more; remove one outline"
        )
    roi.doubts.append(
        f"{roi.name} has holes that leave a wall of {min(roi.walls_vox):.1f} to {max(roi.walls_vox):.1f} "
        f"voxels on {len(roi.walls_vox)} of {planes} planes; check that no outline was drawn twice"
    )


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
