"""Fillings in teeth: metal, and the bright and dark streaks that it throws across its slices."""

import numpy as np
import numpy.typing as npt

from lib.imaging.quantities import SpacingMm
from lib.recipes.schema import AugmentConfig

Hu = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

METAL_HU = 8000.0
"""Amalgam and gold, beyond the 12 bits of most scanners; blurred, it saturates the voxels beside it too."""

_BONE_HU = 300.0
_TOOTH_HU = 1000.0
"""Enamel, also when voxels of 4 mm average it with what lies beside it."""
_DENTAL_ARCH_MM = 45.0
"""How far behind the chin the last molar is."""
_CROWNS_MM = (-6.0, 14.0)
"""Where the crowns of both rows of teeth are, from the top of the jaw's body up."""
_RADIUS_MM = (1.5, 4.0)
_APART_MM = 15.0
"""Two fillings closer than this in the plane throw no band between them that would be told from the rest."""
_ANGLES = 360
"""Entries of a filling's table of streaks, over 180 degrees: a streak runs out on both sides."""


def add_fillings(
    hu: Hu,
    jaw: Mask | None,
    spacing_mm: SpacingMm,
    rng: np.random.Generator,
    config: AugmentConfig,
) -> Hu:
    """Return `hu` with a few fillings where teeth are, or `hu` itself where there are none.

    The streaks are a drawing, not a projection: along every line through a filling HU are raised or lowered,
    less with the distance, and lowered on the lines that join two fillings, as beam hardening and photon
    starvation do (Barrett and Keat 2004). The result may leave the scanner's scale; what comes after
    (resolution, noise) acts on it before it is clipped.

    Args:
        hu: `(X, Y, Z)`, axes to R, A, S or to L, A, S.
        jaw: The mandible in it; None where nobody contoured it, then enamel alone shows where teeth are.
        spacing_mm: Of the voxels.
        rng: This variation's stream.
        config: `metal_probability`, `metal_fillings` and `metal_streak_hu`.
    """
    if rng.random() >= config.metal_probability:
        return hu
    places = np.argwhere(teeth(hu, jaw, spacing_mm))
    if len(places) == 0:
        return hu
    count = int(rng.integers(1, config.metal_fillings + 1))
    spacing = np.array(spacing_mm)
    centres_mm = (
        places[rng.integers(len(places), size=count)] + rng.random((count, 3)) - 0.5
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
    """Return where fillings may be: hard tissue of the dental arch, at the height of the crowns.

    Without a contoured jaw: enamel in the front half of the crop's.
    """
    if jaw is None:
        hard = hu > _TOOTH_HU
        rows = np.flatnonzero(hard.any(axis=(0, 2)))
        if len(rows):
            hard[:, : (rows[0] + rows[-1]) // 2] = False
        return hard
    found = np.zeros(hu.shape, bool)
    rows = np.flatnonzero(jaw.any(axis=(0, 2)))
    if len(rows) == 0:
        return found
    # The rami rise far above the teeth; the front of the jaw does not.
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
    found[arch] = hu[arch] > _BONE_HU
    return found


def _streaks(
    number: int,
    centres_mm: npt.NDArray[np.float64],
    radii_mm: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> Hu:
    """Return what a filling adds along each direction of a half circle, -1..1: few lines strong, most weak."""
    rays = int(rng.integers(24, 48))
    values = rng.standard_normal(rays) ** 3
    values = values - values.mean()
    angles = np.arange(_ANGLES) * (np.pi / _ANGLES)
    table = np.interp(angles, np.arange(rays) * (np.pi / rays), values, period=np.pi)
    table /= np.abs(table).max()
    for other in range(len(centres_mm)):
        apart = centres_mm[other] - centres_mm[number]
        distance = float(np.hypot(apart[0], apart[1]))
        if distance > _APART_MM and abs(apart[2]) < 2 * radii_mm[other]:
            off = (angles - np.arctan2(apart[1], apart[0]) + np.pi / 2) % np.pi - np.pi / 2
            table -= np.exp(-0.5 * (off * distance / radii_mm[other]) ** 2)
    return np.asarray(np.clip(table, -1, 1).astype(np.float32))


def _add_streaks(
    hu: Hu,
    table: Hu,
    centre_mm: npt.NDArray[np.float64],
    radius_mm: float,
    spacing: npt.NDArray[np.float64],
) -> None:
    """Add, in place, `table` around one filling, in its slices and a little in their neighbours."""
    x, y = (
        (np.arange(hu.shape[axis]) * spacing[axis] - centre_mm[axis]).astype(np.float32)
        for axis in (0, 1)
    )
    angle = np.arctan2(y[None, :], x[:, None]) * np.float32(_ANGLES / np.pi)
    distance = np.hypot(x[:, None], y[None, :])
    # 1 at 20 mm, and not above 2: lines through one point thin out with the distance from it.
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
    """Put, in place, a ball of metal; voxels on its edge take their share of it."""
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
