"""Planes of the contours of one ROI, and the slice of the CT that each belongs to.

- Contours lie in one plane if their distance along the slices' normal is of the size of rounded coordinates.
- A slice gets the plane that is nearest to it, at most half a slice distance away. Planes half-way between two
  slices all belong to the slice of lower index.
- Where planes are finer than the slices, an organ ends half a plane distance beyond its last plane: a slice
  beyond that is not drawn.
- Planes are never mixed: the other planes of a slice are left out, since a neighbouring plane would be taken
  for a hole. Only a contour that overlaps nothing on its slice and on the neighbouring slices is added: it is
  a separate piece of the organ.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.dicom.contours import Contour, Roi, overlapping, without_repeats
from lib.errors import GeometryError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray

ROUNDING_MM = 0.05
"""Distance along the normal within which contours lie in one plane: coordinates rounded to 0.1 mm."""

PLANES_AHEAD = 50
"""Number of planes among which the next one over a plane is looked for."""

HALF_WAY_TOLERANCE = 1e-3
"""Smallest tolerance for a plane half-way between two slices, as a share of their distance."""


@dataclass(frozen=True, slots=True)
class Plane:
    """The contours of one plane, without repeats.

    Attributes:
        z_vox: Position along the slices' normal, in slices.
        contours: The contours, at least one.
        boxes: `(N, 4)`, their bounding boxes.
    """

    z_vox: float
    contours: tuple[Contour, ...]
    boxes: FloatArray

    def lies_over(self, other: "Plane") -> bool:
        """Return whether a contour of this plane, seen along the normal, lies over one of the other."""
        return any(overlapping(box, other.boxes).any() for box in self.boxes)


def tolerance_vox(contours: Sequence[Contour], grid: Grid) -> float:
    """Return the distance within which contours lie in one plane, in slices.

    On an oblique scan, rounding moves the points of a contour along the normal: their spread shows by how much.
    """
    spread = float(np.median([contour.tilt_vox for contour in contours])) if contours else 0.0
    return ROUNDING_MM / grid.spacing_mm[2] + spread


def planes_of(contours: Sequence[Contour], tolerance: float, roi: Roi) -> list[Plane]:
    """Return the planes of `contours`, by increasing z; repeated contours are removed, with a note."""
    groups: list[list[Contour]] = []
    for contour in sorted(contours, key=lambda c: c.z_vox):
        # Slightly more than the tolerance: it is compared with differences of floating-point numbers.
        if groups and contour.z_vox - groups[-1][0].z_vox <= tolerance + 1e-6:
            groups[-1].append(contour)
        else:
            groups.append([contour])
    planes = []
    for group in groups:
        kept = without_repeats(group, roi)
        z_vox = float(np.median([contour.z_vox for contour in group]))
        planes.append(Plane(z_vox, kept, np.array([contour.box for contour in kept])))
    return planes


def distances_above(planes: Sequence[Plane]) -> FloatArray:
    """Return the distance from each plane to the next one that lies over it; infinite if there is none."""
    above = np.full(len(planes), np.inf)
    for i, plane in enumerate(planes):
        over = next(
            (other for other in planes[i + 1 : i + 1 + PLANES_AHEAD] if other.lies_over(plane)),
            None,
        )
        if over is not None:
            above[i] = over.z_vox - plane.z_vox
    return above


def usual_distance(above: FloatArray) -> float:
    """Return the usual distance of adjacent planes, in slices; of two planes or fewer, that of the slices.

    It is the upper quartile, since repeated planes lie close together.
    """
    known = above[np.isfinite(above)]
    return float(np.quantile(known, 0.75)) if len(known) > 1 else 1.0


def planes_by_slice(
    planes: Sequence[Plane], tolerance: float, roi: Roi, grid: Grid, image_id: str
) -> dict[int, list[Contour]]:
    """Return, for each slice with contours, those that it is drawn from.

    Raises:
        GeometryError: If a plane lies more than half a slice distance beyond the ends of the scan.
    """
    half_way = _half_way(planes, tolerance)
    slices = [_slice_of(plane, half_way, roi, grid, image_id) for plane in planes]
    distance = [abs(plane.z_vox - z) for plane, z in zip(planes, slices, strict=True)]
    # Floating-point noise must not decide between two planes at the same distance.
    order = sorted(range(len(planes)), key=lambda i: (round(distance[i], 3), planes[i].z_vox))
    usual = usual_distance(distances_above(planes))
    reach = usual / 2 + HALF_WAY_TOLERANCE if usual < 1 - tolerance else np.inf
    drawn: dict[int, Plane] = {}
    for i in order:
        if distance[i] <= reach or _is_between(slices[i], planes[i], planes):
            drawn.setdefault(slices[i], planes[i])
    on_slice = {z: list(plane.contours) for z, plane in drawn.items()}
    used = {z: _boxes(drawn, z - 1, z, z + 1) for z in {*slices}}
    for i in order:
        z, plane = slices[i], planes[i]
        if drawn.get(z) is plane:
            if distance[i] > tolerance:
                roi.notes["planes of contours between slices, counted to the nearer one"] += 1
            continue
        is_piece = np.array([not overlapping(box, used[z]).any() for box in plane.boxes])
        if is_piece.any():
            on_slice.setdefault(z, []).extend(plane.contours[k] for k in np.flatnonzero(is_piece))
            used[z] = np.concatenate([used[z], plane.boxes[is_piece]])
        if not is_piece.all():
            note = "contours left out: another plane lies nearer to their slice"
            roi.notes[note] += int(np.count_nonzero(~is_piece))
    return on_slice


def _boxes(planes: Mapping[int, Plane], *keys: int) -> FloatArray:
    return np.concatenate([np.empty((0, 4)), *(planes[k].boxes for k in keys if k in planes)])


def _is_between(z: int, plane: Plane, planes: Sequence[Plane]) -> bool:
    """Return whether slice `z` lies between `plane` and another one that lies over it, at most a slice away."""
    first = bisect_left(planes, plane.z_vox - 1, key=lambda other: other.z_vox)
    last = bisect_right(planes, plane.z_vox + 1, key=lambda other: other.z_vox)
    return any(
        (other.z_vox - z) * (plane.z_vox - z) < 0 and other.lies_over(plane)
        for other in planes[first:last]
    )


def _half_way(planes: Sequence[Plane], tolerance: float) -> float:
    """Return the position between two slices up to which a plane belongs to the lower one, about 0.5.

    Rounding must not decide plane by plane: two neighbouring planes would get one slice, and another slice
    none. The position lies in the largest gap between those of the planes.
    """
    reach = 3 * max(tolerance, HALF_WAY_TOLERANCE)
    positions = np.array([plane.z_vox % 1 for plane in planes])
    near = np.sort(positions[np.abs(positions - 0.5) < reach])
    ends = np.concatenate([[0.5 - reach], near, [0.5 + reach]])
    # Of equal gaps the upper one: planes half-way belong to the lower slice.
    widest = len(near) - int(np.argmax(np.round(np.diff(ends)[::-1], 6)))
    return float((ends[widest] + ends[widest + 1]) / 2) if len(near) else 0.5


def _slice_of(plane: Plane, half_way: float, roi: Roi, grid: Grid, image_id: str) -> int:
    n, step_mm = grid.shape_vox[2], grid.spacing_mm[2]
    z = int(np.clip(np.ceil(plane.z_vox - half_way), 0, n - 1))
    distance = abs(plane.z_vox - z)
    if distance > 0.5 + 2 * abs(half_way - 0.5) + HALF_WAY_TOLERANCE:
        end = "first" if z == 0 else "last"
        raise GeometryError(
            f"{image_id}: a contour of {roi.name!r} lies {distance * step_mm:.1f} mm beyond the {end} "
            f"slice; half the slice distance, {step_mm / 2:.1f} mm, is allowed: export the whole CT"
        )
    return z
