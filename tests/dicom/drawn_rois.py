"""Contours of solids with known volumes, on a grid of 1 x 1 x 3 mm or of other slices."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from lib.dicom.contour_masks import mask_from_contours
from lib.dicom.contours import Roi
from lib.imaging.geometry import Grid, ras_to_lps
from tests.phantoms import rotation

Points = npt.NDArray[np.float64]
Planes = list[tuple[float, Points]]
"""Position of each contour along the slices' normal, and its corners `(N, 2)`; mm from the first voxel."""

CENTRE_MM = (24.3, 28.4, 30.0)
RADII_MM = (10.0, 13.0, 21.0)
ELLIPSOID_ML = 4 / 3 * np.pi * 10 * 13 * 21 / 1000


def ellipse(
    radius_x: float, radius_y: float, centre: Sequence[float] = CENTRE_MM, corners: int = 90
) -> Points:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack(
        [centre[0] + radius_x * np.cos(angle), centre[1] + radius_y * np.sin(angle)], axis=1
    )


def ellipsoid(step_mm: float, offset_mm: float = 0.0) -> Planes:
    """Return the contours of the ellipsoid around `CENTRE_MM` on planes `step_mm` apart."""
    low, high = CENTRE_MM[2] - RADII_MM[2], CENTRE_MM[2] + RADII_MM[2]
    positions = np.arange(low - 60 + offset_mm, high, step_mm)
    shares = 1 - ((positions - CENTRE_MM[2]) / RADII_MM[2]) ** 2
    return [
        (float(z), ellipse(RADII_MM[0] * share**0.5, RADII_MM[1] * share**0.5))
        for z, share in zip(positions, shares, strict=True)
        if share > 1e-9
    ]


def cylinder(
    positions_mm: Iterable[float], radius_mm: float, centre: Sequence[float] = CENTRE_MM
) -> Planes:
    return [(float(z), ellipse(radius_mm, radius_mm, centre)) for z in positions_mm]


def make_scan(step_mm: float = 3.0, *, is_oblique: bool = False) -> Grid:
    """Return a grid of 48 x 56 voxels of 1 x 1 mm on slices over 66 mm."""
    affine = np.eye(4)
    turn = rotation(about_x_deg=17, about_z_deg=31) if is_oblique else np.eye(3)
    affine[:3, :3] = turn * np.array([1, 1, step_mm])
    affine[:3, 3] = (-33.3, 20.2, -77.7)
    return Grid.from_affine((48, 56, round(66 / step_mm)), ras_to_lps(affine))


def drawn(
    planes: Planes, grid: Grid, *, decimals: int = 6, kind: str = "CLOSED_PLANAR"
) -> tuple[float, Roi]:
    """Return the volume of the mask, in mL, and the ROI with its notes."""
    to_lps = ras_to_lps(grid.affine_ras)
    items = []
    for z_mm, corners in planes:
        z = np.full(len(corners), z_mm / grid.spacing_mm[2])
        points = np.column_stack([corners, z]) @ to_lps[:3, :3].T + to_lps[:3, 3]
        items.append((kind, np.round(points, decimals)))
    roi = Roi("Organ", 1, "")
    mask = mask_from_contours(items, roi, grid, "case7")
    return float(mask.sum() * grid.voxel_ml), roi
