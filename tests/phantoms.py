"""Small synthetic volumes in which all directions differ; no patient data.

The base phantom has 20 x 16 x 12 voxels of 1.5 x 2 x 3 mm: air, an elliptical body of 40 HU, bone on the
patient's left only, and one voxel of 1500 HU at `MARK_VOX`.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import FloatArray, LabelArray, ShapeVox, SpacingMm
from lib.imaging.volumes import CtVolume

SHAPE_VOX: ShapeVox = (20, 16, 12)
SPACING_MM: SpacingMm = (1.5, 2.0, 3.0)
ORIGIN_LPS_MM = (-10.25, -35.5, 120.75)
MARK_VOX = (14, 5, 3)
MARK_HU = 1500
MARK_RAS_MM = (-10.75, 25.5, 129.75)
"""Of the upright phantom: LPS (-10.25 + 14 * 1.5, -35.5 + 5 * 2, 120.75 + 3 * 3) with x and y negated."""

ORIENTATIONS = [
    (order, flips)
    for order in itertools.permutations((0, 1, 2))
    for flips in itertools.product((False, True), repeat=3)
]
"""All 48 storage orders of a volume: the old axis of each new axis, and which new axes are then reversed."""


def rotation(*, about_x_deg: float = 0.0, about_z_deg: float = 0.0) -> FloatArray:
    """Return the `(3, 3)` matrix of a rotation about z, followed by one about x."""
    x, z = np.radians(about_x_deg), np.radians(about_z_deg)
    turn_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    turn_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    return np.asarray(np.array(turn_x, float) @ np.array(turn_z, float))


def make_grid(shape_vox: ShapeVox = SHAPE_VOX, directions: FloatArray | None = None) -> Grid:
    """Return a grid of `SPACING_MM`; the columns of `directions` are its axes in LPS, upright by default."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if directions is None else directions) * np.array(SPACING_MM)
    affine[:3, 3] = ORIGIN_LPS_MM
    return Grid.from_affine(shape_vox, ras_to_lps(affine))


def make_ct(grid: Grid | None = None, *, image_id: str = "phantom") -> CtVolume:
    """Return the phantom drawn on the voxels of `grid`, at least as large as `SHAPE_VOX`."""
    grid = grid or make_grid()
    x, y, z = np.indices(grid.shape_vox, dtype=np.float32)
    array = np.full(grid.shape_vox, -1000, np.int16)
    array[((x - 9.5) / 8) ** 2 + ((y - 7.5) / 6) ** 2 + ((z - 5.5) / 9) ** 2 < 1] = 40
    array[13:16, 4:9, 2:8] = 700
    array[MARK_VOX] = MARK_HU
    return CtVolume(image_id, array, grid)


def make_oblique_ct() -> CtVolume:
    """Return the phantom on a grid rotated by 20 degrees about z and 10 degrees about x."""
    return make_ct(make_grid(directions=rotation(about_x_deg=10, about_z_deg=20)))


def make_label(grid: Grid | None = None) -> LabelArray:
    """Return a label on the phantom: 1 in the left bone, 2 in a smaller box on the right, 7 at the mark."""
    array = np.zeros((grid or make_grid()).shape_vox, np.uint8)
    array[13:16, 4:9, 2:8] = 1
    array[3:5, 5:9, 2:5] = 2
    array[MARK_VOX] = 7
    return array


def stored_as(ct: CtVolume, order: Sequence[int], flips: Sequence[bool]) -> CtVolume:
    """Return the same scan with its axes permuted and reversed in memory; no voxel moves in the patient."""
    array, affine = ct.array_hu.transpose(*order), ct.grid.affine_ras
    affine[:, :3] = affine[:, list(order)]
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    x, y, z = array.shape
    return CtVolume(ct.image_id, np.ascontiguousarray(array), Grid.from_affine((x, y, z), affine))


def mark_ras_mm(ct: CtVolume) -> FloatArray:
    """Return the position of the brightest voxel, in RAS mm."""
    index = np.unravel_index(int(ct.array_hu.argmax()), ct.array_hu.shape)
    return np.asarray((ct.grid.affine_ras @ [*index, 1])[:3])
