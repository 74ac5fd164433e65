"""Training crops: centred on an organ, turned, stretched, mirrored; each a pure function of its number."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from lib.organs import mirror_values
from lib.recipes import Recipe
from lib.training.cases import PreparedCase
from lib.transforms.pipelines import Pipeline

AIR_HU = -1024.0
JITTER = 0.25
"""How far a crop's centre may lie from its organ's voxel, as a share of the crop."""
MAX_ROTATION = np.deg2rad([4.0, 4.0, 12.0])
"""About x, y, z: the body turns most about its long axis, and voxels are anisotropic."""
MAX_ZOOM = 0.15
MAX_NOISE_HU = 25.0
MAX_SHIFT_HU = 15.0
MAX_CONTRAST = 0.08
MIRROR_PROBABILITY = 0.5

Sample = tuple[Tensor, Tensor, Tensor]


class CropDataset(Dataset[Sample]):
    """Crop number `n` of a run: `(image (C, X, Y, Z), label (X, Y, Z) int64, known (K,) bool)`.

    It depends on the seed and on `n` alone, so that a run that is resumed goes on with the very crops that
    it would have seen, and worker processes change nothing.
    """

    def __init__(
        self, cases: Sequence[PreparedCase], recipe: Recipe, *, seed: int, length: int
    ) -> None:
        self.cases = cases
        self.recipe = recipe
        self.pipeline = Pipeline(recipe)
        self.seed = seed
        self.length = length
        self._organs = sorted({organ for case in cases for organ in case.points})
        self._mirrored = torch.tensor(mirror_values(recipe.labels))

    def __len__(self) -> int:
        """Return how many crops the run sees."""
        return self.length

    def __getitem__(self, number: int) -> Sample:
        """Return crop `number`."""
        rng = np.random.default_rng([self.seed, number])
        case, centre = self._place(rng)
        hu, label = self._extract(case, centre, rng)
        known = torch.zeros(self.recipe.classes, dtype=torch.bool)
        known[[0, *case.points]] = True
        if rng.random() < MIRROR_PROBABILITY:
            hu, label = hu.flip(0), self._mirrored[label.flip(0)]
            known = known[self._mirrored]
        image = self.pipeline.window(_disturb(hu.numpy(), rng))
        return torch.from_numpy(image), label, known

    def _place(self, rng: np.random.Generator) -> tuple[PreparedCase, npt.NDArray[np.float64]]:
        """Return a case and a crop's centre in it.

        The organ is drawn first, each equally often, then a case that has it: an organ that few cases were
        contoured for is seen as often as one that all were.
        """
        if rng.random() >= self.recipe.schedule.organ_probability:
            case = self.cases[rng.integers(len(self.cases))]
            return case, rng.random(3) * (np.array(case.hu.shape) - 1)
        organ = self._organs[rng.integers(len(self._organs))]
        having = [case for case in self.cases if organ in case.points]
        case = having[rng.integers(len(having))]
        points = case.points[organ]
        point = points[rng.integers(len(points))].astype(np.float64)
        jitter = (rng.random(3) * 2 - 1) * JITTER * np.array(self.recipe.crop_vox)
        return case, np.asarray(np.clip(point + jitter, 0, np.array(case.hu.shape) - 1))

    def _extract(
        self, case: PreparedCase, centre: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return HU and label of a crop about `centre`, rotated and zoomed at random."""
        crop = np.array(self.recipe.crop_vox)
        spacing = np.array(self.recipe.spacing_mm)
        zoom = 1 + (rng.random(3) * 2 - 1) * MAX_ZOOM
        rotation = _rotation((rng.random(3) * 2 - 1) * MAX_ROTATION)
        # Voxel offsets in the crop -> voxel offsets in the case, turned in mm.
        matrix = (rotation * spacing / spacing[:, None]) * zoom
        reach = np.abs(matrix) @ (crop / 2) + 1
        low = np.floor(centre - reach).astype(int)
        high = np.ceil(centre + reach).astype(int) + 1
        hu = torch.from_numpy(_window(case.hu, low, high, AIR_HU).astype(np.float32))
        label = torch.from_numpy(_window(case.label, low, high, 0).astype(np.float32))
        grid = _sampling_grid(matrix, centre - low, crop, np.array(hu.shape))
        turned = functional.grid_sample(
            hu[None, None], grid, mode="bilinear", padding_mode="border", align_corners=True
        )
        nearest = functional.grid_sample(
            label[None, None], grid, mode="nearest", padding_mode="border", align_corners=True
        )
        return turned[0, 0], nearest[0, 0].long()


def _window(
    array: npt.NDArray[np.generic],
    low: npt.NDArray[np.int_],
    high: npt.NDArray[np.int_],
    fill: float,
) -> npt.NDArray[np.generic]:
    """Return `array[low:high]`, with `fill` where that leaves the array."""
    inside_low = np.clip(low, 0, array.shape)
    inside_high = np.clip(high, inside_low, array.shape)
    part = array[tuple(slice(int(a), int(b)) for a, b in zip(inside_low, inside_high, strict=True))]
    result = np.full(tuple(int(n) for n in high - low), fill, array.dtype)
    offset = inside_low - low
    result[tuple(slice(int(o), int(o) + n) for o, n in zip(offset, part.shape, strict=True))] = part
    return result


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _sampling_grid(
    matrix: npt.NDArray[np.float64],
    centre: npt.NDArray[np.float64],
    crop: npt.NDArray[np.int_],
    size: npt.NDArray[np.int_],
) -> Tensor:
    """Return where each voxel of the crop lies, `(1, X, Y, Z, 3)`.

    As `grid_sample` wants it: -1..1 over the window's voxel centres, the last axis first.
    """
    axes = [torch.arange(int(n), dtype=torch.float32) - (int(n) - 1) / 2 for n in crop]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    where = offsets @ torch.from_numpy(matrix.T.astype(np.float32))
    where = where + torch.from_numpy(centre.astype(np.float32))
    scaled = where * torch.from_numpy((2.0 / (size - 1)).astype(np.float32)) - 1
    return scaled.flip(-1)[None]


def _disturb(hu: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return `hu` as another scanner might have seen it: contrast, offset, noise."""
    contrast = 1 + (rng.random() * 2 - 1) * MAX_CONTRAST
    shift = (rng.random() * 2 - 1) * MAX_SHIFT_HU
    noise = rng.standard_normal(hu.shape, dtype=np.float32) * np.float32(
        rng.random() * MAX_NOISE_HU
    )
    return np.asarray(hu * np.float32(contrast) + np.float32(shift) + noise, dtype=np.float32)
