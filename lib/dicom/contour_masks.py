"""Conversion of the contours of one ROI to a mask on the CT.

- A voxel belongs to a ROI if its centre lies inside an odd number of the contours on its slice: a contour
  inside another is a hole, and so is the region that a keyhole contour goes around. `polygons.fill_polygon`
  defines the rule for a centre on an edge.
- A contour that appears twice on a slice counts once.
- A contour that contains no voxel centre marks the voxel of its centroid, so that a structure smaller than a
  voxel is not lost. It never removes a voxel: a hole smaller than a voxel is lost.
- A contour between two slices belongs to the nearer one (half-way: the one of lower z), unless another
  plane of contours is nearer to that slice: planes are never mixed. A contour more than half a slice distance
  beyond the ends of the scan is refused.
- Points, open contours, contours of fewer than three different points, and contours without area mark nothing;
  a note counts them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.dicom.polygons import PixelBox, centroid, fill_polygon
from lib.errors import GeometryError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import FloatArray, MaskArray

PLANE_TOLERANCE = 0.2
"""Largest spread of the points of one plane along the slices' normal, as a share of the slice distance.

Coordinates rounded to 0.1 mm on an oblique scan of 1 mm slices differ by half of it.
"""

HALF_WAY_TOLERANCE = 1e-3
"""Tolerance for a contour half-way between two slices, as a share of their distance."""

RIM_TOLERANCE = 1e-3
"""Tolerance for a contour along the slice's rim, in voxels: decimal strings are rounded."""

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


@dataclass(frozen=True, slots=True)
class _Contour:
    """A closed polygon: corners `(N, 2)` in voxel indices x and y, and z."""

    points_vox: FloatArray
    z_vox: float


@dataclass(slots=True)
class Roi:
    """One ROI during reading; `notes` counts special cases among its contours."""

    name: str
    number: int
    frame: str
    notes: "Counter[str]" = field(default_factory=Counter)


def mask_from_contours(
    contours: Iterable[tuple[str, FloatArray]], roi: Roi, grid: Grid, image_id: str
) -> MaskArray:
    """Return the voxels `(X, Y, Z)` of `grid` that the contours of `roi` mark.

    Args:
        contours: ContourGeometricType, and the points `(N, 3)` in LPS mm, of each.
        roi: The ROI, which receives notes.
        grid: The CT's grid; its z axis runs from slice to slice.
        image_id: For messages.

    Raises:
        GeometryError: If a closed contour does not lie in a slice of the scan.
    """
    closed = _closed_contours(contours, roi, grid, image_id)
    mask = _draw(_planes_by_slice(closed, roi, grid, image_id), roi, grid, image_id)
    if not mask.any():
        roi.notes[f"of {len(closed)} closed contours mark a voxel"] = 0
    return mask


def _closed_contours(
    items: Iterable[tuple[str, FloatArray]], roi: Roi, grid: Grid, image_id: str
) -> list[_Contour]:
    """Return the contours that enclose an area, in voxel indices."""
    to_voxel = np.linalg.inv(ras_to_lps(grid.affine_ras))
    contours = []
    for kind, points_lps in items:
        if kind not in _CLOSED:
            roi.notes[f"contours of type {kind} skipped"] += 1
            continue
        points = points_lps @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        if len(np.unique(np.round(points, 6), axis=0)) < 3:
            roi.notes["contours of fewer than 3 points dropped"] += 1
            continue
        across = float(np.ptp(points[:, 2]))
        if across > PLANE_TOLERANCE:
            raise GeometryError(
                f"{image_id}: a contour of {roi.name!r} is not parallel to the slices: it spans "
                f"{across * grid.spacing_mm[2]:.1f} mm across them; draw it on the CT's own slices"
            )
        if centroid(points[:, :2]) is None:
            roi.notes["contours without area dropped"] += 1
            continue
        contours.append(_Contour(points[:, :2], float(np.median(points[:, 2]))))
    return contours


def _planes_by_slice(
    contours: Sequence[_Contour], roi: Roi, grid: Grid, image_id: str
) -> dict[int, list[_Contour]]:
    """Return, for each slice, the contours of the one plane that lies nearest to it."""
    n, step_mm = grid.shape_vox[2], grid.spacing_mm[2]
    on_slice: defaultdict[int, list[_Contour]] = defaultdict(list)
    for contour in contours:
        z = int(np.clip(np.ceil(contour.z_vox - 0.5 - HALF_WAY_TOLERANCE), 0, n - 1))
        distance = abs(contour.z_vox - z)
        if distance > 0.5 + HALF_WAY_TOLERANCE:
            end = "first" if z == 0 else "last"
            raise GeometryError(
                f"{image_id}: a contour of {roi.name!r} lies {distance * step_mm:.1f} mm beyond the {end} "
                f"slice; half the slice distance, {step_mm / 2:.1f} mm, is allowed: export the whole CT"
            )
        if distance > PLANE_TOLERANCE / 2:
            roi.notes["contours between slices, counted to the nearer one"] += 1
        on_slice[z].append(contour)
    for z, candidates in on_slice.items():
        nearest = min((c.z_vox for c in candidates), key=lambda z_vox: abs(z_vox - z))
        plane = [c for c in candidates if abs(c.z_vox - nearest) <= PLANE_TOLERANCE]
        if len(plane) < len(candidates):
            note = "contours left out: others lie nearer to their slice"
            roi.notes[note] += len(candidates) - len(plane)
        on_slice[z] = plane
    if on_slice:
        empty = max(on_slice) - min(on_slice) + 1 - len(on_slice)
        if empty:
            roi.notes["slices between its contours have none"] = empty
    return on_slice


def _draw(
    planes: Mapping[int, Sequence[_Contour]], roi: Roi, grid: Grid, image_id: str
) -> MaskArray:
    size_x, size_y, size_z = grid.shape_vox
    mask = np.zeros((size_z, size_y, size_x), np.bool_).transpose(2, 1, 0)  # each slice contiguous
    for z, contours in planes.items():
        _draw_slice(mask[:, :, z], contours, roi, image_id)
    return np.asarray(mask)


def _draw_slice(plane: MaskArray, contours: Sequence[_Contour], roi: Roi, image_id: str) -> None:
    """Mark the pixels of `plane` `(X, Y)` that an odd number of `contours` enclose."""
    keys: set[bytes] = set()
    filled: list[tuple[PixelBox, MaskArray]] = []
    small = []
    for contour in contours:
        key = _contour_key(contour.points_vox)
        if key in keys:
            roi.notes["contours that repeat another left out"] += 1
            continue
        keys.add(key)
        _require_inside(contour.points_vox, plane.shape, roi, image_id)
        box, inside = fill_polygon(contour.points_vox, (plane.shape[0], plane.shape[1]))
        if not inside.any():
            small.append(contour)
            continue
        if any(_cross(box, inside, *other) for other in filled):
            roi.notes["contours cross others of their slice; what both enclose is left out"] += 1
        filled.append((box, inside))
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


def _cross(box: PixelBox, inside: MaskArray, other_box: PixelBox, other: MaskArray) -> bool:
    """Return whether two filled contours share pixels and neither lies inside the other."""
    common = [
        (max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other_box, strict=True)
    ]
    (x_0, x_1), (y_0, y_1) = common
    if x_0 >= x_1 or y_0 >= y_1:
        return False
    here = inside[x_0 - box[0].start : x_1 - box[0].start, y_0 - box[1].start : y_1 - box[1].start]
    there = other[
        x_0 - other_box[0].start : x_1 - other_box[0].start,
        y_0 - other_box[1].start : y_1 - other_box[1].start,
    ]
    shared = int(np.count_nonzero(here & there))
    return 0 < shared < min(int(np.count_nonzero(inside)), int(np.count_nonzero(other)))


def _contour_key(points_vox: FloatArray) -> bytes:
    """Return a key that is equal for contours of the same corners, in any order and direction."""
    rounded = np.round(points_vox, 4) + 0.0  # no negative zeros
    return bytes(np.unique(rounded, axis=0).tobytes())


def _require_inside(
    points_vox: FloatArray, shape: tuple[int, ...], roi: Roi, image_id: str
) -> None:
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
