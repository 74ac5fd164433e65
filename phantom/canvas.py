"""Conversion of shapes to voxels: the pose of a patient, and a canvas of HU and organ labels."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray, LabelArray, ShapeVox, SpacingMm
from phantom.shapes import BoxMm, Points, Shape

FIELD_CENTRE_MM = (0.0, -4.0, -70.0)
"""Centre of the field of view (left, a, s), in mm from the brainstem's centre."""

_HEAD_PIVOT_MM = np.array([0.0, -5.0, -62.0])
"""Pivot of the head's rotation (left, a, s), in mm."""
_MARGIN_MM = 20.0
"""Largest movement of a point by a pose, in mm, beside scale and offset."""

_POINT_SPREAD_MM = 1.2
"""Standard deviation of the scanner's in-plane blur, in mm."""

Region = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Size, position and posture of a patient on the table, relative to the standard anatomy.

    Attributes:
        scale: Scale along left, a, s.
        offset_mm: Position (left, a, s) of the brainstem on the table.
        neck: Scale of the length of everything below the mandible's angle.
        angles_deg: Rotation of the head about the left, a and s axes, which fades out along the neck.
        lean_mm: Displacement of the lower end of the neck to the left of the head.
        curve_mm: Displacement of the spine to the back, 100 mm below the skull.
        world_mm: RAS position of the table's origin, the scanner's reference.
    """

    scale: tuple[float, float, float]
    offset_mm: tuple[float, float, float]
    neck: float
    angles_deg: tuple[float, float, float]
    lean_mm: float
    curve_mm: float
    world_mm: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Pose":
        """Return a random pose."""
        scale = rng.uniform(0.92, 1.08, 3)
        offset = rng.uniform([-5, -6, -5], [5, 6, 5])
        angles = rng.uniform([-4, -3, -4], [4, 3, 4])
        return cls(
            scale=(float(scale[0]), float(scale[1]), float(scale[2])),
            offset_mm=(float(offset[0]), float(offset[1]), float(offset[2])),
            neck=float(rng.uniform(0.93, 1.07)),
            angles_deg=(float(angles[0]), float(angles[1]), float(angles[2])),
            lean_mm=float(rng.uniform(-5, 5)),
            curve_mm=float(rng.uniform(-4, 4)),
            world_mm=(0.0, float(np.round(rng.uniform(-180, -140))), float(rng.integers(-900, 0))),
        )

    def grid(self, shape_vox: ShapeVox, spacing_mm: SpacingMm) -> Grid:
        """Return a grid around head and neck, in the axis order of a head-first supine scan."""
        spacing = np.array(spacing_mm)
        first = np.array(FIELD_CENTRE_MM) * (-1, 1, 1) + np.array(self.world_mm)
        first -= np.array([-1, -1, 1]) * spacing * (np.array(shape_vox) - 1) / 2
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        affine[:3, 3] = first
        return Grid.from_affine(shape_vox, affine)

    def unposed(self, table: Points) -> Points:
        """Return the standard anatomy's coordinates of points on the table, an open mesh of left, a, s."""
        left, a, s = (
            (p - o) / k for p, o, k in zip(table, self.offset_mm, self.scale, strict=True)
        )
        s = np.where(s < -62, -62 + (s + 62) / self.neck, s)
        low = np.clip((-50 - s) / 80, 0, 1)
        low = low * low * (3 - 2 * low)
        depth = np.clip((-40 - s) / 100, 0, 1.6)
        left, a = left - self.lean_mm * low, a + self.curve_mm * depth**2
        pitch, roll, yaw = (np.deg2rad(angle) * (1 - low) for angle in self.angles_deg)
        left, a, s = (p - c for p, c in zip((left, a, s), _HEAD_PIVOT_MM, strict=True))
        a, s = np.cos(pitch) * a + np.sin(pitch) * s, np.cos(pitch) * s - np.sin(pitch) * a
        left, s = np.cos(roll) * left + np.sin(roll) * s, np.cos(roll) * s - np.sin(roll) * left
        left, a = np.cos(yaw) * left + np.sin(yaw) * a, np.cos(yaw) * a - np.sin(yaw) * left
        x, y, z = _HEAD_PIVOT_MM
        return (
            (left + x).astype(np.float32),
            (a + y).astype(np.float32),
            (s + z).astype(np.float32),
        )

    def table_box(self, box: BoxMm) -> BoxMm:
        """Return a box on the table that contains `box` of the standard anatomy."""
        sides = []
        for axis, side in enumerate(box):
            ends = [-62 + (v + 62) * self.neck if axis == 2 and v < -62 else v for v in side]
            low, high = (v * self.scale[axis] + self.offset_mm[axis] for v in ends)
            sides.append((low - _MARGIN_MM, high + _MARGIN_MM))
        return sides[0], sides[1], sides[2]


class Canvas:
    """A CT under construction: tissue covers earlier tissue, an organ never covers an earlier organ.

    Attributes:
        hu: `(X, Y, Z)`, float32.
        organs: `(X, Y, Z)`, number of the organ by its position in `names`, from 1.
        names: TG-263 names of the organs painted so far.
        texture: `(X, Y, Z)`, smooth noise of standard deviation 1, with a scale of about 9 mm.
        points: left, a, s of each voxel centre in the standard anatomy.
        table: left, a, s of each voxel centre on the table, as an open mesh.
    """

    def __init__(self, pose: Pose, grid: Grid, seed: int) -> None:
        self._pose = pose
        self._spacing_mm = np.array(grid.spacing_mm)
        self._soft_mm = np.float32(self._spacing_mm.mean())
        self._rng = np.random.default_rng([seed, 1])
        first = (grid.affine_ras[:3, 3] - np.array(pose.world_mm)) * (-1, 1, 1)
        steps = self._spacing_mm * (1, -1, 1)
        axes = [f + d * np.arange(n) for f, d, n in zip(first, steps, grid.shape_vox, strict=True)]
        self._axes = axes
        across, along, up = np.meshgrid(*axes, indexing="ij", sparse=True)
        self.table: Points = (across, along, up)
        self.points = pose.unposed(self.table)
        self.hu: FloatArray = np.full(grid.shape_vox, -1000, np.float32)
        self.organs: LabelArray = np.zeros(grid.shape_vox, np.uint8)
        self.names: list[str] = []
        self.texture = self._smooth_noise(9.0)

    def region(self, box: BoxMm, grow_mm: float = 0.0) -> Region:
        """Return the voxels that `box` of the standard anatomy, grown by `grow_mm`, can contain."""
        slices = []
        for axis, (low, high) in zip(self._axes, self._pose.table_box(box), strict=True):
            margin_mm = grow_mm + float(self._soft_mm)
            inside = np.flatnonzero((axis >= low - margin_mm) & (axis <= high + margin_mm))
            slices.append(
                slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
            )
        return slices[0], slices[1], slices[2]

    def points_in(self, region: Region) -> Points:
        """Return left, a, s of the voxel centres of `region`."""
        left, a, s = (p[region] for p in self.points)
        return left, a, s

    def paint(
        self,
        shape: Shape,
        hu: float,
        organ: str = "",
        *,
        grow_mm: float = 0.0,
        texture: float = 0.0,
    ) -> None:
        """Fill `shape`, grown by `grow_mm`, with `hu` and noise of `texture` HU; label it as `organ`."""
        region = self.region(shape.box, grow_mm)
        distance = shape.distance(self.points_in(region)) - np.float32(grow_mm)
        self.blend(region, distance, hu, texture=texture)
        if organ:
            self.names.append(organ)
            current = self.organs[region]
            current[(distance < 0) & (current == 0)] = len(self.names)

    def blend(
        self, region: Region, distance: FloatArray, hu: float, *, texture: float = 0.0
    ) -> None:
        """Mix `hu` into `region` by the share of each voxel with a negative `distance`."""
        share = np.clip(np.float32(0.5) - distance / self._soft_mm, 0, 1)
        current = self.hu[region]
        tissue = np.float32(hu) + np.float32(texture) * self.texture[region]
        current += share * (tissue - current)

    def finished(self, noise_hu: float) -> "np.ndarray[tuple[int, ...], np.dtype[np.int16]]":
        """Return the HU as stored by a scanner: blurred, noisy, rounded and clipped."""
        sigma = _POINT_SPREAD_MM / self._spacing_mm
        blurred = gaussian_filter(self.hu, sigma * (1, 1, 0.5), truncate=2.5)
        blurred += np.float32(noise_hu) * self._smooth_noise(1.5)
        return np.asarray(np.clip(np.rint(blurred), -1024, 3071).astype(np.int16))

    def _smooth_noise(self, coarse_mm: float) -> FloatArray:
        """Return noise of standard deviation 1, smooth on a scale of `coarse_mm`."""
        noise = self._rng.standard_normal(self.hu.shape, dtype=np.float32)
        sigma = coarse_mm / self._spacing_mm / 2
        noise = gaussian_filter(noise, sigma, truncate=2.5)
        return np.asarray(noise / noise.std(), dtype=np.float32)
