"""Augmentation of training crops: pose and shape, then effects of scanners and dental fillings (ADR 0011).

Each function is pure and has its own random stream, so that switching one variation off does not change
the others. All functions work in HU, before any window, and in mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from lib.imaging.quantities import LabelArray, ShapeVox, SpacingMm
from lib.recipes.schema import AugmentConfig
from lib.training.metal import add_fillings

Hu = npt.NDArray[np.float32]

AIR_HU = -1024.0
"""HU value of padding outside the reconstruction circle."""
MAX_HU = 3071.0
"""Largest HU value of a 12-bit scale; most scanners store metal with it."""

STREAMS = (
    "place", "mirror", "rotation", "zoom", "elastic", "metal", "thick_slice", "blur", "sharpen",
    "contrast", "shift", "noise", "field_of_view",
)  # fmt: skip
"""Names of the random streams, one per variation; only append: a stream's position decides its numbers."""

_FIELD_RADIUS_MM = (110.0, 250.0)
"""Range of the radius of the reconstruction circle, in mm: fields of view of 220 to 500 mm."""


class RandomStreams:
    """The random streams of one crop, one for each variation."""

    def __init__(self, seed: int, number: int) -> None:
        children = np.random.default_rng([seed, number]).spawn(len(STREAMS))
        self._by_name = dict(zip(STREAMS, children, strict=True))

    def __getitem__(self, name: str) -> np.random.Generator:
        """Return the stream called `name`."""
        return self._by_name[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A training crop before it becomes the network's input.

    Attributes:
        hu: `(X, Y, Z)` float32.
        label: `(X, Y, Z)` uint8.
        contoured: `(K,)`: whether the case was contoured for each class; background always is.
        spacing_mm: Voxel size.
    """

    hu: Hu
    label: LabelArray
    contoured: npt.NDArray[np.bool_]
    spacing_mm: SpacingMm


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """A map from a crop's voxels to the case: `matrix @ (offset + field)` voxels from the crop's centre.

    Attributes:
        matrix: `(3, 3)`, rotation and zoom in mm, as voxels.
        field: `(3, X, Y, Z)` float32, elastic displacement in voxels; None if there is none.
        reach_vox: `(3,)`, largest distance from the centre that a voxel of the crop is read from.
    """

    matrix: npt.NDArray[np.float64]
    field: Hu | None
    reach_vox: npt.NDArray[np.float64]

    @property
    def is_identity(self) -> bool:
        """Whether no voxel is moved."""
        return self.field is None and bool((self.matrix == np.eye(3)).all())


def draw_warp(
    crop_vox: ShapeVox, spacing_mm: SpacingMm, streams: RandomStreams, config: AugmentConfig
) -> Warp:
    """Return a random pose and shape: rotation, zoom and elastic deformation as one map.

    Neither rotation, zoom nor deformation folds tissue over, so their composition does not either.
    """
    spacing = np.array(spacing_mm)
    rotation = _rotation(draw_angles(streams["rotation"], config))
    matrix = (rotation * spacing / spacing[:, None]) * draw_zoom(streams["zoom"], config)
    field = elastic_field(crop_vox, spacing_mm, streams["elastic"], config)
    half = np.array(crop_vox) / 2
    if field is not None:
        half = half + np.abs(field).max(axis=(1, 2, 3))
    return Warp(matrix=matrix, field=field, reach_vox=np.abs(matrix) @ half + 1)


def draw_angles(rng: np.random.Generator, config: AugmentConfig) -> npt.NDArray[np.float64]:
    """Return angles about x, y, z, in radians."""
    if rng.random() >= config.rotation_probability:
        return np.zeros(3)
    return np.asarray((rng.random(3) * 2 - 1) * np.deg2rad(config.rotation_deg))


def draw_zoom(rng: np.random.Generator, config: AugmentConfig) -> npt.NDArray[np.float64]:
    """Return the zoom along x, y, z; 1 changes nothing."""
    if rng.random() >= config.zoom_probability:
        return np.ones(3)
    return np.asarray(1 + (rng.random(3) * 2 - 1) * config.zoom)


def elastic_field(
    crop_vox: ShapeVox, spacing_mm: SpacingMm, rng: np.random.Generator, config: AugmentConfig
) -> Hu | None:
    """Return a smooth displacement `(3, X, Y, Z)` along x, y, z in voxels, or None.

    Control points of a coarse grid are moved at random; a uniform cubic B-spline interpolates the movement at
    every voxel (Rueckert et al. 1999).
    """
    if rng.random() >= config.elastic_probability:
        return None
    weights = [
        _spline_weights(size, spacing / config.elastic_grid_mm)
        for size, spacing in zip(crop_vox, spacing_mm, strict=True)
    ]
    points = (3, *(w.shape[1] for w in weights))
    moved_mm = (rng.random(points, dtype=np.float32) * 2 - 1) * rng.random() * config.elastic_mm
    moved = (moved_mm / np.reshape(spacing_mm, (3, 1, 1, 1))).astype(np.float32)
    return spline_field(moved, weights)


def spline_field(control: Hu, weights: Sequence[Hu]) -> Hu:
    """Return `(3, X, Y, Z)` from control points `(3, I, J, K)` and one `(size, points)` matrix per axis."""
    along_x, along_y, along_z = weights
    planes = along_y @ (control @ along_z.T)
    size = planes.shape
    rows = along_x @ planes.reshape(3, size[1], -1)
    return np.asarray(rows.reshape(3, len(along_x), *size[2:]))


def _spline_weights(size: int, step: float) -> Hu:
    """Return each control point's weight at each voxel, `(size, points)`; voxels are `step` cells apart."""
    position = np.arange(size) * step
    cell = position.astype(int)
    t = position - cell
    basis = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    )
    weights = np.zeros((size, int(cell[-1]) + 4), np.float32)
    for k in range(4):
        weights[np.arange(size), cell + k] = basis[k] / 6
    return weights


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def augment(
    crop: Crop,
    streams: RandomStreams,
    config: AugmentConfig,
    *,
    mirrored: npt.NDArray[np.int_],
    mandible: int | None,
) -> Crop:
    """Return `crop` with random variations: mirrored, with fillings, and as from another scanner.

    The order follows the formation of a CT: the patient with metal, the scanner's resolution, its scale, its
    noise, and the edge of the reconstruction.

    Args:
        crop: The crop, already rotated and deformed.
        streams: Random streams of this crop.
        config: Probabilities and sizes of the variations.
        mirrored: `(K,)`, the label value of each class in a mirrored patient.
        mandible: Label value of the mandible, which shows where teeth are; None if the organ set lacks it.
    """
    crop = mirror(crop, mirrored, streams["mirror"], config)
    hu, spacing_mm = crop.hu, crop.spacing_mm
    jaw = crop.label == mandible if mandible is not None and crop.contoured[mandible] else None
    hu = add_fillings(hu, jaw, spacing_mm, streams["metal"], config)
    hu = thick_slices(hu, spacing_mm, streams["thick_slice"], config)
    hu = blur(hu, spacing_mm, streams["blur"], config)
    hu = sharpen(hu, spacing_mm, streams["sharpen"], config)
    hu = contrast(hu, streams["contrast"], config)
    hu = shift(hu, streams["shift"], config)
    hu = noise(hu, streams["noise"], config)
    crop = replace(crop, hu=np.clip(hu, AIR_HU, MAX_HU))
    return cut_field_of_view(crop, streams["field_of_view"], config)


def mirror(
    crop: Crop,
    mirrored: npt.NDArray[np.int_],
    rng: np.random.Generator,
    config: AugmentConfig,
) -> Crop:
    """Return `crop` with left and right exchanged, also in the label values and in `contoured`."""
    if rng.random() >= config.mirror_probability:
        return crop
    return replace(
        crop,
        hu=np.ascontiguousarray(crop.hu[::-1]),
        label=mirrored.astype(np.uint8)[crop.label[::-1]],
        contoured=crop.contoured[mirrored],
    )


def thick_slices(
    hu: Hu, spacing_mm: SpacingMm, rng: np.random.Generator, config: AugmentConfig
) -> Hu:
    """Return `hu` as from slices up to `thick_slice_mm` thick: averaged along z, interpolated back.

    The label is unchanged: it describes the organ, not its image in thick slices. A crop whose slices are
    that thick already is returned unchanged.
    """
    thickest_vox = config.thick_slice_mm / spacing_mm[2]
    if rng.random() >= config.thick_slice_probability or thickest_vox <= 1:
        return hu
    thick_vox = rng.uniform(1, thickest_vox)
    first = rng.random() * thick_vox
    size = hu.shape[2]
    z = np.arange(size)
    # Rows of `overlap`: share of a thick slice in each thin slice; `between` interpolates back to thin slices.
    middles = np.arange(first - thick_vox, size + thick_vox, thick_vox)
    overlap = np.clip((thick_vox + 1) / 2 - np.abs(middles[:, None] - z), 0, 1)
    is_inside = overlap.sum(axis=1) > 0
    middles, overlap = middles[is_inside], overlap[is_inside]
    averaged = overlap / overlap.sum(axis=1, keepdims=True)
    between = np.stack([np.interp(z, middles, row) for row in np.eye(len(middles))], axis=1)
    return np.asarray(hu @ (between @ averaged).T.astype(np.float32))


def blur(hu: Hu, spacing_mm: SpacingMm, rng: np.random.Generator, config: AugmentConfig) -> Hu:
    """Return `hu` as from a softer kernel: a Gaussian of one width in the plane and another along z."""
    if rng.random() >= config.blur_probability:
        return hu
    plane_mm, z_mm = rng.random(2) * config.blur_mm
    return _gaussian(hu, (plane_mm, plane_mm, z_mm), spacing_mm)


def sharpen(hu: Hu, spacing_mm: SpacingMm, rng: np.random.Generator, config: AugmentConfig) -> Hu:
    """Return `hu` as from a sharper kernel: the finest detail in the plane is amplified."""
    if rng.random() >= config.sharpen_probability:
        return hu
    amount = np.float32(rng.random() * config.sharpen)
    soft = _gaussian(hu, (config.blur_mm, config.blur_mm, 0.0), spacing_mm)
    return np.asarray(hu + amount * (hu - soft))


def _gaussian(hu: Hu, sigma_mm: SpacingMm, spacing_mm: SpacingMm) -> Hu:
    for axis in range(3):
        sigma_vox = sigma_mm[axis] / spacing_mm[axis]
        if sigma_vox > 0.1:
            hu = gaussian_filter1d(hu, sigma_vox, axis=axis, mode="nearest", truncate=3.0)
    return hu


def contrast(hu: Hu, rng: np.random.Generator, config: AugmentConfig) -> Hu:
    """Return `hu` scaled about water (0 HU) by a random factor close to 1."""
    if rng.random() >= config.contrast_probability:
        return hu
    return np.asarray(hu * np.float32(1 + (rng.random() * 2 - 1) * config.contrast))


def shift(hu: Hu, rng: np.random.Generator, config: AugmentConfig) -> Hu:
    """Return `hu` with a random constant added."""
    if rng.random() >= config.shift_probability:
        return hu
    return np.asarray(hu + np.float32((rng.random() * 2 - 1) * config.shift_hu))


def noise(hu: Hu, rng: np.random.Generator, config: AugmentConfig) -> Hu:
    """Return `hu` with white noise of a random strength."""
    if rng.random() >= config.noise_probability:
        return hu
    strength = np.float32(rng.random() * config.noise_hu)
    return np.asarray(hu + rng.standard_normal(hu.shape, dtype=np.float32) * strength)


def cut_field_of_view(crop: Crop, rng: np.random.Generator, config: AugmentConfig) -> Crop:
    """Return `crop` cut by the edge of the scan: a circle in each slice, or the first or last slice.

    Outside, HU are those of air and the label is background, even where an organ was: tissue that was not
    scanned is not contoured, and the network must not learn to contour padding. The organ still counts
    as contoured, so that contouring it beyond the edge is an error.
    """
    if rng.random() >= config.field_of_view_probability:
        return crop
    draw_outside = _outside_circle if rng.random() < 0.5 else _outside_slices
    is_outside = draw_outside(crop.hu.shape, crop.spacing_mm, rng, config)
    return replace(
        crop,
        hu=np.where(is_outside, np.float32(AIR_HU), crop.hu),
        label=np.where(is_outside, np.uint8(0), crop.label),
    )


def _outside_slices(
    shape: tuple[int, ...],
    spacing_mm: SpacingMm,
    rng: np.random.Generator,
    config: AugmentConfig,
) -> npt.NDArray[np.bool_]:
    """Return `(1, 1, Z)`: True for slices beyond the first or last slice of the scan."""
    count = int(min(rng.random() * config.field_of_view_mm / spacing_mm[2], shape[2] / 2))
    is_outside = np.zeros(shape[2], bool)
    is_outside[:count] = True
    return (is_outside if rng.random() < 0.5 else is_outside[::-1])[None, None]


def _outside_circle(
    shape: tuple[int, ...],
    spacing_mm: SpacingMm,
    rng: np.random.Generator,
    config: AugmentConfig,
) -> npt.NDArray[np.bool_]:
    """Return `(X, Y, 1)`: True outside a circle whose edge crosses one side of the crop."""
    half_mm = (np.array(shape[:2]) - 1) / 2 * spacing_mm[:2]
    angle = rng.random() * 2 * np.pi
    direction = np.array([np.cos(angle), np.sin(angle)])
    side_mm = (half_mm / np.maximum(np.abs(direction), 1e-6)).min()
    edge_mm = max(0.0, side_mm - rng.random() * config.field_of_view_mm)
    radius_mm = rng.uniform(*_FIELD_RADIUS_MM)
    centre_mm = direction * (edge_mm - radius_mm)
    x, y = (
        np.linspace(-half, half, size) - centre
        for half, size, centre in zip(half_mm, shape, centre_mm, strict=False)
    )
    return np.asarray(x[:, None, None] ** 2 + y[None, :, None] ** 2 > radius_mm**2)
