"""Comparison of the volume of a ROI's mask with the volume that its contours enclose.

The volume of the contours is the area of each plane times its share of the distance to the neighbouring planes.
It is computed from the polygons, without the voxels, so that contours that are lost or counted twice on the way
to the mask become visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.dicom.contour_planes import Plane, distances_above, usual_distance
from lib.dicom.contours import Roi
from lib.dicom.polygons import enclosed_area, perimeter
from lib.errors import GeometryError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray, MaskArray

DOUBTFUL_DIFFERENCE = 0.1
"""Difference that a note tells, as a share of the volume of the contours; in addition to that of sampling."""

GROSS_RATIO = 0.4
"""Smallest ratio of the two volumes; below it the ROI is refused, unless sampling alone may explain it.

An organ that is drawn on every second slice has half of the volume of its contours: it is accepted with a note.
Drawn on every third slice it has a third: the mask is no organ any more.
"""

SYSTEMATIC_VOX = 0.25
"""Distance, in voxels, by which the edge of the mask may lie off the contour all around the organ.

A straight edge lies up to half a voxel off; opposite edges of an organ do so by half of that on average.
"""

WORST_VOX = 0.5
"""Largest distance, in voxels, of the edge of the mask from the contour."""


@dataclass(frozen=True, slots=True)
class _Enclosed:
    """What the contours of a ROI enclose, in voxels.

    Attributes:
        volume: Area times thickness.
        side: Perimeter times thickness: the surface without its ends.
        end: Mean area of a plane, summed over the parts of the organ.
        contours: Number of contours, per slice.
    """

    volume: float
    side: float
    end: float
    contours: float


def compare_volumes(
    mask: MaskArray,
    parts: Sequence[Sequence[Plane]],
    roi: Roi,
    grid: Grid,
    image_id: str,
    *,
    tolerance: float,
) -> None:
    """Add a note to `roi` if its mask and its contours have different volumes.

    Args:
        mask: `(X, Y, Z)`.
        parts: For each part of the organ, the planes of its contours, by increasing z.
        roi: The ROI.
        grid: Grid of the mask.
        image_id: For messages.
        tolerance: Distance of a plane from a slice that counts as none, in slices.

    Raises:
        GeometryError: If the volumes differ grossly, and more than the sampling of a small organ can explain.
    """
    if not parts:
        return
    enclosed = _enclosed(parts, grid)
    marked = int(np.count_nonzero(mask))
    is_resampled = any(abs(p.z_vox - round(p.z_vox)) > tolerance for part in parts for p in part)
    # Between slices, an organ may begin and end up to half a slice earlier or later.
    one_slice = enclosed.end if is_resampled else 0.0
    difference = abs(marked - enclosed.volume)
    volumes = (
        f"{marked * grid.voxel_ml:.2f} mL on the CT, its contours (area times plane spacing) enclose "
        f"{enclosed.volume * grid.voxel_ml:.2f} mL"
    )
    ratio = min(marked, enclosed.volume) / max(marked, enclosed.volume)
    # A contour smaller than a voxel marks one.
    rounding = enclosed.contours + one_slice
    is_gross = ratio < GROSS_RATIO and difference > rounding
    if is_gross and difference > rounding + WORST_VOX * enclosed.side:
        raise GeometryError(
            f"{image_id}: {roi.name!r} would have {volumes}; draw one outline on each slice of the CT "
            f"({grid.spacing_mm[2]:.2f} mm apart; interpolate missing slices), and export it again"
        )
    sampling = rounding + SYSTEMATIC_VOX * enclosed.side
    if is_gross or difference > DOUBTFUL_DIFFERENCE * enclosed.volume + sampling:
        roi.doubts.append(f"{roi.name} has {volumes}; compare the mask with its contours")


def _enclosed(parts: Sequence[Sequence[Plane]], grid: Grid) -> _Enclosed:
    shape = (grid.shape_vox[0], grid.shape_vox[1])
    volume = side = end = contours = 0.0
    for planes in parts:
        thickness = _thickness(planes)
        areas = [enclosed_area([c.points_vox for c in plane.contours], shape) for plane in planes]
        sides = [sum(perimeter(c.points_vox) for c in plane.contours) for plane in planes]
        volume += float(areas @ thickness)
        side += float(sides @ thickness)
        end += float(np.mean(areas))
        contours += float(np.array([len(plane.contours) for plane in planes]) @ thickness)
    return _Enclosed(volume, side, end, contours)


def _thickness(planes: Sequence[Plane]) -> FloatArray:
    """Return the thickness of the layer that each plane stands for, in slices.

    It reaches half-way to the next plane below and above that has a contour over those of the plane, but not
    more than half of the usual distance, which is the upper quartile.
    """
    above = distances_above(planes)
    below = np.full(len(planes), np.inf)
    positions = np.array([plane.z_vox for plane in planes])
    for z_vox, distance in zip(positions, above, strict=True):
        if np.isfinite(distance):
            upper = int(np.abs(positions - z_vox - distance).argmin())
            below[upper] = min(below[upper], distance)
    usual = usual_distance(above)
    return np.asarray((np.minimum(above, usual) + np.minimum(below, usual)) / 2)
