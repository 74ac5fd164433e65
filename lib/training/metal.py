"""Dental fillings in training crops: metal, and its bright and dark streak artefacts."""

import numpy as np
import numpy.typing as npt

from lib.imaging.quantities import SpacingMm
from lib.recipes.schema import AugmentConfig

Hu = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

METAL_HU = 8000.0
"""HU value of amalgam and gold, above the 12-bit scale; after blurring, neighbouring voxels saturate too."""

_BONE_HU = 300.0
"""Lower bound of bone in HU."""
_TOOTH_HU = 1000.0
"""Lower bound of enamel in HU, also when averaged with its surroundings in voxels of 4 mm."""
_DENTAL_ARCH_MM = 45.0
"""Distance from the chin to the last molar, in mm."""
_CROWNS_MM = (-6.0, 14.0)
"""Range of the crowns of both rows of teeth, in mm above the top of the jaw's body."""
_RADIUS_MM = (1.5, 4.0)
"""Range of the radius of a filling, in mm."""
_APART_MM = 15.0
"""Smallest distance of two fillings in the plane, in mm, for a visible dark band between them."""
_ANGLES = 360
"""Number of directions of streaks over 180 degrees; a streak extends to both sides of its filling."""


def add_fillings(
    hu: Hu,
    jaw: Mask | None,
    spacing_mm: SpacingMm,
    rng: np.random.Generator,
    config: AugmentConfig,
) -> Hu:
    """Return `hu` with a few fillings in teeth, or `hu` itself if there are no teeth.

    Streaks are drawn, not simulated by projection: along each line through a filling, HU are raised or lowered,
    less at a larger distance. On lines that connect two fillings they are lowered, as by beam hardening and
    photon starvation (Barrett and Keat 2004). The result may exceed the scanner's scale; later variations
    (resolution, noise) act on it before it is clipped.

    Args:
        hu: `(X, Y, Z)`, axes to R, A, S or to L, A, S.
        jaw: Mask of the mandible; None if it was not contoured, then only enamel shows where teeth are.
        spacing_mm: Voxel size.
        rng: Random stream of this variation.
        config: `metal_probability`, `metal_fillings` and `metal_streak_hu`.
    """
    if rng.random() >= config.metal_probability:
        return hu
    tooth_voxels = np.argwhere(teeth(hu, jaw, spacing_mm))
    if len(tooth_voxels) == 0:
        return hu
    count = int(rng.integers(1, config.metal_fillings + 1))
    spacing = np.array(spacing_mm)
    centres_mm = (
        tooth_voxels[rng.integers(len(tooth_voxels), size=count)] + rng.random((count, 3)) - 0.5
    ) * spacing
    radii_mm = rng.uniform(*_RADIUS_MM, size=count)
    result = hu.copy()
    for number in range(count):
        table = _streaks(number, centres_mm, radii_mm, rng)
        strength_hu = np.float32(rng.uniform(0.3, 1.0) * config.metal_streak_hu)
        _add_streaks(result, table * strength_hu, centres_mm[number], radii_mm[number], spacing)
    for centre_mm, radius_mm in zip(centres_mm, radii_mm, strict=True):
        _add_metal(result, centre_mm, radius_mm, spacing)
    return np.asarray(result)


def teeth(hu: Hu, jaw: Mask | None, spacing_mm: SpacingMm) -> Mask:
    """Return the voxels where fillings can be: hard tissue of the dental arch, at the height of the crowns.

    Without a contoured jaw: enamel in the front half of the region that contains enamel.
    """
    if jaw is None:
        hard = hu > _TOOTH_HU
        rows = np.flatnonzero(hard.any(axis=(0, 2)))
        if len(rows):
            hard[:, : (rows[0] + rows[-1]) // 2] = False
        return hard
    is_tooth = np.zeros(hu.shape, bool)
    rows = np.flatnonzero(jaw.any(axis=(0, 2)))
    if len(rows) == 0:
        return is_tooth
    # The rami extend far above the teeth; only the front of the jaw shows the height of the crowns.
    front = rows[-1] - int(_DENTAL_ARCH_MM / spacing_mm[1])
    chin = rows[-1] - int(0.4 * _DENTAL_ARCH_MM / spacing_mm[1])
    top = np.flatnonzero(jaw[:, max(0, chin) :].any(axis=(0, 1)))[-1]
    low, high = (round(top + mm / spacing_mm[2]) for mm in _CROWNS_MM)
    columns = np.flatnonzero(jaw.any(axis=(1, 2)))
    arch = (
        slice(columns[0], columns[-1] + 1),
        slice(max(0, front), rows[-1] + 1),
        slice(max(0, low), max(0, high) + 1),
    )
    is_tooth[arch] = hu[arch] > _BONE_HU
    return is_tooth


def _streaks(
    number: int,
    centres_mm: npt.NDArray[np.float64],
    radii_mm: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> Hu:
    """Return the strength of a filling's streak in each direction of a half circle, -1..1; most are weak."""
    rays = int(rng.integers(24, 48))
    values = rng.standard_normal(rays) ** 3
    values = values - values.mean()
    angles = np.arange(_ANGLES) * (np.pi / _ANGLES)
    table = np.interp(angles, np.arange(rays) * (np.pi / rays), values, period=np.pi)
    table /= np.abs(table).max()
    for other in range(len(centres_mm)):
        vector = centres_mm[other] - centres_mm[number]
        distance = float(np.hypot(vector[0], vector[1]))
        if distance > _APART_MM and abs(vector[2]) < 2 * radii_mm[other]:
            deviation = (angles - np.arctan2(vector[1], vector[0]) + np.pi / 2) % np.pi - np.pi / 2
            table -= np.exp(-0.5 * (deviation * distance / radii_mm[other]) ** 2)
    return np.asarray(np.clip(table, -1, 1).astype(np.float32))


def _add_streaks(
    hu: Hu,
    table: Hu,
    centre_mm: npt.NDArray[np.float64],
    radius_mm: float,
    spacing: npt.NDArray[np.float64],
) -> None:
    """Add `table` around one filling in place, in its slices and weakly in neighbouring slices."""
    x, y = (
        (np.arange(hu.shape[axis]) * spacing[axis] - centre_mm[axis]).astype(np.float32)
        for axis in (0, 1)
    )
    angle = np.arctan2(y[None, :], x[:, None]) * np.float32(_ANGLES / np.pi)
    distance = np.hypot(x[:, None], y[None, :])
    # 1 at 20 mm, 2 at most: lines through one point get sparser with the distance from it.
    plane = table[angle.astype(np.intp) % _ANGLES] * (2 / (1 + distance / np.float32(20)))
    depth_mm = np.arange(hu.shape[2]) * spacing[2] - centre_mm[2]
    weight = np.exp(-0.5 * (depth_mm / (radius_mm + spacing[2] / 3)) ** 2 * 2)
    for z in np.flatnonzero(weight > 0.05):
        hu[:, :, z] += plane * np.float32(weight[z])


def _add_metal(
    hu: Hu,
    centre_mm: npt.NDArray[np.float64],
    radius_mm: float,
    spacing: npt.NDArray[np.float64],
) -> None:
    """Add a ball of metal in place; voxels on its edge are mixed by their share of metal."""
    margin_mm = radius_mm + spacing
    low = np.maximum(0, np.floor((centre_mm - margin_mm) / spacing)).astype(int)
    high = np.minimum(hu.shape, np.ceil((centre_mm + margin_mm) / spacing) + 1).astype(int)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    axes = [
        np.arange(a, b) * s - c for a, b, s, c in zip(low, high, spacing, centre_mm, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    edge_mm = float(np.cbrt(np.prod(spacing)))
    share = np.clip(0.5 + (radius_mm - np.sqrt(x**2 + y**2 + z**2)) / edge_mm, 0, 1)
    hu[box] = (hu[box] * (1 - share) + METAL_HU * share).astype(np.float32)
