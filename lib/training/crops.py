"""Training crops: centred on an organ, and varied; each a pure function of its number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from lib.inference.preprocessing import Pipeline
from lib.organs.table import mirror_values
from lib.recipes.schema import Recipe
from lib.training.augment import AIR_HU, Crop, RandomStreams, Warp, augment, draw_warp
from lib.training.cases import PreparedCase

JITTER = 0.25
"""How far a crop's centre may lie from its organ's voxel, as a share of the crop."""

Sample = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Favoured:
    """Cases that are drawn more often than the others.

    Attributes:
        image_ids: Which; empty favours none.
        share: Of the crops that can come from one of them as well as from another case.
    """

    image_ids: tuple[str, ...] = ()
    share: float = 0.5


class CropDataset(Dataset[Sample]):
    """Crop number `n` of a run: `(image (C, X, Y, Z), label (X, Y, Z) int64, known (K,) bool)`.

    It depends on the seed and on `n` alone, so that a run that is resumed goes on with the very crops that
    it would have seen, and worker processes change nothing.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        recipe: Recipe,
        *,
        seed: int,
        length: int,
        favoured: Favoured = Favoured(),
    ) -> None:
        self.cases = cases
        self.favoured = favoured
        self.recipe = recipe
        self.pipeline = Pipeline(recipe)
        self.seed = seed
        self.length = length
        self._organs = sorted({organ for case in cases for organ in case.points})
        self._mirrored = np.array(mirror_values(recipe.labels))

    def __len__(self) -> int:
        """Return how many crops the run sees."""
        return self.length

    def __getitem__(self, number: int) -> Sample:
        """Return crop `number`."""
        crop = self.crop(number)
        image = self.pipeline.window(crop.hu)
        label = torch.from_numpy(crop.label.astype(np.int64))
        return torch.from_numpy(image), label, torch.from_numpy(crop.known)

    def crop(self, number: int) -> Crop:
        """Return crop `number` in HU, before the windows."""
        recipe = self.recipe
        streams = RandomStreams(self.seed, number)
        case, centre = self._place(streams["place"])
        warp = draw_warp(recipe.crop_vox, recipe.spacing_mm, streams, recipe.augment)
        hu, label = _extract(case, centre, warp, np.array(recipe.crop_vox))
        known = np.zeros(recipe.classes, bool)
        known[[0, *case.points]] = True
        return augment(
            Crop(hu=hu, label=label, known=known, spacing_mm=recipe.spacing_mm),
            streams,
            recipe.augment,
            mirrored=self._mirrored,
            mandible=recipe.labels.get("Bone_Mandible"),
        )

    def _place(self, rng: np.random.Generator) -> tuple[PreparedCase, npt.NDArray[np.float64]]:
        """Return a case and a crop's centre in it.

        The organ is drawn first, each equally often, then a case that has it: an organ that few cases were
        contoured for is seen as often as one that all were.
        """
        if rng.random() >= self.recipe.schedule.organ_probability:
            case = self._one_of(self.cases, rng)
            return case, rng.random(3) * (np.array(case.hu.shape) - 1)
        organ = self._organs[int(rng.integers(len(self._organs)))]
        having = [case for case in self.cases if organ in case.points]
        case = self._one_of(having, rng)
        points = case.points[organ]
        point = points[rng.integers(len(points))].astype(np.float64)
        jitter = (rng.random(3) * 2 - 1) * JITTER * np.array(self.recipe.crop_vox)
        return case, np.asarray(np.clip(point + jitter, 0, np.array(case.hu.shape) - 1))

    def _one_of(self, cases: Sequence[PreparedCase], rng: np.random.Generator) -> PreparedCase:
        if self.favoured.image_ids:
            is_favoured = rng.random() < self.favoured.share
            chosen = [c for c in cases if (c.image_id in self.favoured.image_ids) == is_favoured]
            cases = chosen or cases
        return cases[int(rng.integers(len(cases)))]


def _extract(
    case: PreparedCase, centre: npt.NDArray[np.float64], warp: Warp, crop: npt.NDArray[np.int_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return HU and label of a crop about `centre`, turned and deformed.

    The crop's voxels are the case's own where the warp moves nothing: between voxels an image is blurred and a
    label jagged, and a network that only ever saw such crops draws worse on a CT as it is.
    """
    corner = np.round(centre - (crop - 1) / 2).astype(int)
    if warp.moves_nothing:
        seen = _window(case.hu, corner, corner + crop, AIR_HU)
        drawn = _window(case.label, corner, corner + crop, 0)
        return seen.astype(np.float32), drawn.astype(np.uint8)
    centre = corner + (crop - 1) / 2
    low = np.floor(centre - warp.reach_vox).astype(int)
    high = np.ceil(centre + warp.reach_vox).astype(int) + 1
    hu = torch.from_numpy(_window(case.hu, low, high, AIR_HU).astype(np.float32))
    label = torch.from_numpy(_window(case.label, low, high, 0).astype(np.float32))
    grid = _sampling_grid(warp, centre - low, crop, np.array(hu.shape))
    turned = functional.grid_sample(
        hu[None, None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    nearest = functional.grid_sample(
        label[None, None], grid, mode="nearest", padding_mode="border", align_corners=True
    )
    return turned[0, 0].numpy(), nearest[0, 0].to(torch.uint8).numpy()


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


def _sampling_grid(
    warp: Warp,
    centre: npt.NDArray[np.float64],
    crop: npt.NDArray[np.int_],
    size: npt.NDArray[np.int_],
) -> Tensor:
    """Return where each voxel of the crop lies, `(1, X, Y, Z, 3)`.

    As `grid_sample` wants it: -1..1 over the window's voxel centres, the last axis first.
    """
    scale = 2.0 / (size - 1)
    matrix = (warp.matrix * scale[:, None]).astype(np.float32)
    origin = (centre * scale - 1).astype(np.float32)
    offsets = [
        (np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)).reshape(np.roll((n, 1, 1), axis))
        for axis, n in enumerate(crop)
    ]
    grid = np.empty((1, *crop, 3), np.float32)
    for axis in range(3):
        x, y, z = (row * offset for row, offset in zip(matrix[axis], offsets, strict=True))
        where = (x + y + origin[axis]) + z
        if warp.field is not None:
            where += np.tensordot(matrix[axis], warp.field, 1)
        grid[0, ..., 2 - axis] = where
    return torch.from_numpy(grid)
