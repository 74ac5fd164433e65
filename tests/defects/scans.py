"""Scans with two organs that a small network learns in seconds, and correct, swapped or bad labels of them."""

import numpy as np

from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray, MaskArray, ShapeVox
from lib.imaging.volumes import CtVolume, LabelVolume
from tests.phantoms import make_grid
from tests.server.running import TINY

SHAPE_VOX: ShapeVox = (40, 36, 24)
"""60 x 72 x 72 mm."""

BRAINSTEM, MANDIBLE = "Brainstem", "Bone_Mandible"
HU = {BRAINSTEM: -120, MANDIBLE: 700}


def scan(seed: int, shape_vox: ShapeVox = SHAPE_VOX) -> CtVolume:
    """Return a body of 40 HU with a block of fat and a block of bone; the seed sets their positions."""
    grid = make_grid(shape_vox)
    array = np.full(grid.shape_vox, -1000, np.int16)
    array[2:-2, 2:-2, 1:-1] = 40
    for organ, mask in _blocks(seed, grid).items():
        array[mask] = HU[organ]
    noise = np.random.default_rng(seed).normal(0, 5, array.shape)
    return CtVolume(f"scan_{seed}", (array + noise).astype(np.int16), grid)


def label(seed: int, *, is_swapped: bool = False) -> LabelVolume:
    """Return the label of a scan; with `is_swapped`, the names of the two organs are exchanged."""
    grid = make_grid(SHAPE_VOX)
    array = np.zeros(grid.shape_vox, np.uint8)
    other = {BRAINSTEM: MANDIBLE, MANDIBLE: BRAINSTEM}
    for organ, mask in _blocks(seed, grid).items():
        array[mask] = TINY.labels[other[organ] if is_swapped else organ]
    return LabelVolume(array, grid, TINY.labels)


def mean_dice(masks: LabelArray, truth: LabelArray) -> float:
    """Return the mean DSC of the two organs."""
    scores = []
    for organ in HU:
        predicted, expected = masks == TINY.labels[organ], truth == TINY.labels[organ]
        scores.append(2 * np.sum(predicted & expected) / (np.sum(predicted) + np.sum(expected)))
    return float(np.mean(scores))


def _blocks(seed: int, grid: Grid) -> dict[str, MaskArray]:
    """Return one block of 10 x 10 x 8 voxels per organ, on opposite sides."""
    random = np.random.default_rng(seed)
    masks = {}
    for number, organ in enumerate(HU):
        x, y, z = (
            5 + 18 * number + random.integers(4),
            random.integers(5, 20),
            random.integers(3, 13),
        )
        mask = np.zeros(grid.shape_vox, bool)
        mask[x : x + 10, y : y + 10, z : z + 8] = True
        masks[organ] = mask
    return masks
