"""Voxel grids: positions in RAS and LPS, comparison of grids, conversion from and to SimpleITK."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from lib.errors import GeometryError
from lib.imaging.quantities import FloatArray, ShapeVox, SpacingMm

SAME_GRID_TOLERANCE_MM = 0.01
"""Largest distance in mm between the corner voxels of two grids that count as equal.

NIfTI stores its transform in 32-bit floats, an error of 3e-5 mm at 500 mm from the origin; DICOM's decimal
strings have 16 characters. A hundredth of a millimetre is above both errors and far below any voxel size.
"""

SHEAR_TOLERANCE_MM = 0.05
"""Largest distance in mm of a corner from the nearest grid with axes at right angles.

Over 500 mm this is an angle of 0.006 degrees: above about that ITK, and so 3D Slicer, refuses a NIfTI file.
"""

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ras_to_lps(affine: FloatArray) -> FloatArray:
    """Return `affine` converted from RAS to LPS world axes, or back: the conversion is its own inverse."""
    return np.asarray(_LPS @ affine)


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular grid of voxels with its position in the patient.

    Attributes:
        shape_vox: Number of voxels along the array's axes `(X, Y, Z)`.
        rows_ras: Upper three rows of the 4x4 matrix from voxel indices to RAS world mm.
    """

    shape_vox: ShapeVox
    rows_ras: tuple[tuple[float, float, float, float], ...]

    @classmethod
    def from_affine(cls, shape_vox: ShapeVox, affine_ras: FloatArray) -> "Grid":
        """Return the grid of `shape_vox` voxels placed by `affine_ras` `(4, 4)`."""
        rows = tuple((float(r[0]), float(r[1]), float(r[2]), float(r[3])) for r in affine_ras[:3])
        return cls(shape_vox, rows)

    @classmethod
    def of_sitk(cls, image: "sitk.Image | sitk.ImageFileReader") -> "Grid":
        """Return the grid of a 3D SimpleITK image or image reader, whose world axes are LPS."""
        affine = np.eye(4)
        direction = np.array(image.GetDirection()).reshape(3, 3)
        affine[:3, :3] = direction * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        x, y, z = image.GetSize()
        return cls.from_affine((x, y, z), ras_to_lps(affine))

    def as_json(self) -> dict[str, Any]:
        """Return the grid as a JSON object, for `from_json`."""
        return {"shape_vox": self.shape_vox, "rows_ras": self.rows_ras}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Grid":
        """Return the grid of a JSON object, of which nothing is taken for granted.

        Raises:
            GeometryError: If it does not describe a grid.
        """
        try:
            x, y, z = (int(side) for side in values["shape_vox"])
            rows = np.array(values["rows_ras"], dtype=np.float64)
            if rows.shape != (3, 4):
                raise ValueError(f"{rows.shape} numbers")
            return cls.from_affine((x, y, z), rows)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise GeometryError(f"no grid of voxels: {error}") from error

    @property
    def affine_ras(self) -> FloatArray:
        """The `(4, 4)` matrix from voxel indices to RAS world mm."""
        return np.vstack([np.array(self.rows_ras), [0.0, 0.0, 0.0, 1.0]])

    @property
    def spacing_mm(self) -> SpacingMm:
        """Distance between voxel centres along the array's axes."""
        x, y, z = np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        return (float(x), float(y), float(z))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3]))) / 1000.0

    def corners_ras(self) -> FloatArray:
        """Return the world positions `(8, 3)` of the corner voxels' centres, in mm."""
        affine = self.affine_ras
        return np.asarray(_corner_indices(self.shape_vox) @ affine[:3, :3].T + affine[:3, 3])

    def is_same_as(self, other: "Grid") -> bool:
        """Return whether the shapes are equal and no corner differs by more than `SAME_GRID_TOLERANCE_MM`."""
        if self.shape_vox != other.shape_vox:
            return False
        distances = np.linalg.norm(self.corners_ras() - other.corners_ras(), axis=1)
        return bool(distances.max() <= SAME_GRID_TOLERANCE_MM)

    def stamp(self, image: sitk.Image) -> sitk.Image:
        """Set origin, spacing and direction of `image` to this grid's, and return it."""
        affine_lps = ras_to_lps(self.affine_ras)
        spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
        image.SetOrigin([float(v) for v in affine_lps[:3, 3]])
        image.SetSpacing([float(v) for v in spacing])
        image.SetDirection([float(v) for v in (affine_lps[:3, :3] / spacing).ravel()])
        return image

    def __str__(self) -> str:
        """Return a readable description of the grid."""
        shape = " x ".join(str(n) for n in self.shape_vox)
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing_mm)
        x, y, z = self.affine_ras[:3, 3]
        return f"{shape} voxels of {spacing} mm at ({x:.1f}, {y:.1f}, {z:.1f}) mm RAS"


def _corner_indices(shape_vox: ShapeVox) -> FloatArray:
    sides = np.array([[(i >> a) & 1 for a in range(3)] for i in range(8)], dtype=np.float64)
    return np.asarray(sides * (np.array(shape_vox) - 1))


def require_same_grid(image_id: str, *, label: Grid, image: Grid) -> None:
    """Check that the label lies on the image's grid.

    Raises:
        GeometryError: If it does not.
    """
    if not label.is_same_as(image):
        raise GeometryError(
            f"{image_id}: the label lies on {label}, the image on {image}; "
            "resample the label onto the image's grid before saving it"
        )


def reordered_onto(
    array: "np.ndarray[Any, Any]", grid: Grid, target: Grid, *, image_id: str
) -> "np.ndarray[Any, Any]":
    """Return a label's `array` with its axes in the order and direction of `target`; no voxel is moved.

    Args:
        array: `(X, Y, Z)` on `grid`.
        grid: Grid of the label.
        target: Grid of the same voxels, with axes in any order and direction.
        image_id: For messages.

    Raises:
        GeometryError: If the two grids do not have the same voxels.
    """
    to_target = (np.linalg.inv(target.affine_ras) @ grid.affine_ras)[:3, :3]
    axes = [int(a) for a in np.abs(to_target).argmax(axis=1)]
    if sorted(axes) != [0, 1, 2]:
        require_same_grid(image_id, label=grid, image=target)
    reordered, affine = array.transpose(axes), grid.affine_ras[:, [*axes, 3]]
    for axis, source_axis in enumerate(axes):
        if to_target[axis, source_axis] < 0:
            reordered = np.flip(reordered, axis)
            affine[:3, 3] += affine[:3, axis] * (reordered.shape[axis] - 1)
            affine[:3, axis] *= -1
    x, y, z = reordered.shape
    if not Grid.from_affine((x, y, z), affine).is_same_as(target):
        require_same_grid(image_id, label=grid, image=target)
    return np.asarray(reordered)


def padded_onto(
    array: "np.ndarray[Any, Any]", grid: Grid, target: Grid, *, image_id: str
) -> "np.ndarray[Any, Any]":
    """Return a label that was cropped from `target` on the whole of it, with zeros around; no voxel is moved.

    Args:
        array: `(X, Y, Z)` on `grid`.
        grid: Grid of the label: a part of the voxels of `target`, with axes in the same order and direction.
        target: The whole grid.
        image_id: For messages.

    Raises:
        GeometryError: If `grid` is no part of `target`.
    """
    start = np.rint((np.linalg.inv(target.affine_ras) @ grid.affine_ras)[:3, 3]).astype(int)
    stop = start + grid.shape_vox
    affine = target.affine_ras
    affine[:3, 3] += affine[:3, :3] @ start
    is_inside = (start >= 0).all() and (stop <= np.array(target.shape_vox)).all()
    if not is_inside or not Grid.from_affine(grid.shape_vox, affine).is_same_as(grid):
        require_same_grid(image_id, label=grid, image=target)
    whole = np.zeros(target.shape_vox, array.dtype, order="F")
    x, y, z = (slice(a, b) for a, b in zip(start, stop, strict=True))
    whole[x, y, z] = array
    return whole


def require_right_angles(image_id: str, grid: Grid) -> None:
    """Check that the axes of `grid` are at right angles, in any direction.

    Raises:
        GeometryError: If they are not, or the grid is flat or not finite.
    """
    axes = grid.affine_ras[:3, :3]
    spacing = np.array(grid.spacing_mm)
    if not np.isfinite(grid.affine_ras).all() or spacing.min() < 1e-6:
        raise GeometryError(
            f"{image_id}: the voxels measure {spacing} mm; three positive numbers expected; "
            "export the image again"
        )
    u, _, vt = np.linalg.svd(axes / spacing)
    moved_mm = (grid.corners_ras() - grid.affine_ras[:3, 3]) - (
        _corner_indices(grid.shape_vox) * spacing
    ) @ (u @ vt).T
    worst_mm = float(np.linalg.norm(moved_mm, axis=1).max())
    if worst_mm > SHEAR_TOLERANCE_MM:
        raise GeometryError(
            f"{image_id}: the axes of the voxel grid are not at right angles (sheared by "
            f"{worst_mm:.2f} mm at a corner, {SHEAR_TOLERANCE_MM} mm allowed); resample the image onto "
            "an orthogonal grid"
        )


def to_sitk(array: "np.ndarray[Any, Any]", grid: Grid) -> sitk.Image:
    """Return `array` `(X, Y, Z)` as a SimpleITK image placed by `grid`."""
    return grid.stamp(sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0))))


def from_sitk(image: sitk.Image) -> "np.ndarray[Any, Any]":
    """Return the voxels of a 3D SimpleITK image as an `(X, Y, Z)` array."""
    return np.asarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0))
