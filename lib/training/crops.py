"""Training crops: mostly centred on an organ, and augmented; each is a pure function of its number."""

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
"""Largest distance of a crop's centre from its organ's voxel, relative to the crop's size."""

Sample = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Favoured:
    """Cases from which crops are drawn more often than from other cases.

    Attributes:
        image_ids: Ids of these cases; if empty, all cases are equal.
        share: Share of crops from these cases, where both these and other cases are possible.
    """

    image_ids: tuple[str, ...] = ()
    share: float = 0.5


class CropDataset(Dataset[Sample]):
    """Crop number `n` of a run: `(image (C, X, Y, Z), label (X, Y, Z) int64, contoured (K,) bool)`.

    A crop depends on the seed and on `n` only. So a resumed run continues with the same crops as a run that was
    not interrupted, and the number of worker processes does not matter.
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
        """Return the number of crops of the run."""
        return self.length

    def __getitem__(self, number: int) -> Sample:
        """Return crop `number`."""
        crop = self.crop(number)
        image = self.pipeline.window(crop.hu)
        label = torch.from_numpy(crop.label.astype(np.int64))
        return torch.from_numpy(image), label, torch.from_numpy(crop.contoured)

    def crop(self, number: int) -> Crop:
        """Return crop `number` in HU, before the windows."""
        recipe = self.recipe
        streams = RandomStreams(self.seed, number)
        case, centre = self._draw_centre(streams["place"])
        warp = draw_warp(recipe.crop_vox, recipe.spacing_mm, streams, recipe.augment)
        hu, label = _extract(case, centre, warp, np.array(recipe.crop_vox))
        contoured = np.zeros(recipe.classes, bool)
        contoured[[0, *case.points]] = True
        return augment(
            Crop(hu=hu, label=label, contoured=contoured, spacing_mm=recipe.spacing_mm),
            streams,
            recipe.augment,
            mirrored=self._mirrored,
            mandible=recipe.labels.get("Bone_Mandible"),
        )

    def _draw_centre(
        self, rng: np.random.Generator
    ) -> tuple[PreparedCase, npt.NDArray[np.float64]]:
        """Return a random case and the centre of a crop in it.

        The organ is drawn first, each with the same probability, then a case that has it: an organ that is
        contoured in few cases is seen as often as an organ that is contoured in all.
        """
        if rng.random() >= self.recipe.schedule.organ_probability:
            case = self._draw_case(self.cases, rng)
            return case, rng.random(3) * (np.array(case.hu.shape) - 1)
        organ = self._organs[int(rng.integers(len(self._organs)))]
        candidates = [case for case in self.cases if organ in case.points]
        case = self._draw_case(candidates, rng)
        points = case.points[organ]
        point = points[rng.integers(len(points))].astype(np.float64)
        jitter = (rng.random(3) * 2 - 1) * JITTER * np.array(self.recipe.crop_vox)
        return case, np.asarray(np.clip(point + jitter, 0, np.array(case.hu.shape) - 1))

    def _draw_case(self, cases: Sequence[PreparedCase], rng: np.random.Generator) -> PreparedCase:
        if self.favoured.image_ids:
            is_favoured = rng.random() < self.favoured.share
            chosen = [c for c in cases if (c.image_id in self.favoured.image_ids) == is_favoured]
            cases = chosen or cases
        return cases[int(rng.integers(len(cases)))]


def _extract(
    case: PreparedCase, centre: npt.NDArray[np.float64], warp: Warp, crop: npt.NDArray[np.int_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return HU and label of a crop about `centre`, rotated and deformed.

    Without a warp the crop has the case's own voxels. Interpolation blurs an image and makes a label jagged,
    and a network that has only seen interpolated crops contours an original CT worse.
    """
    corner = np.round(centre - (crop - 1) / 2).astype(int)
    if warp.is_identity:
        hu_crop = _window(case.hu, corner, corner + crop, AIR_HU)
        label_crop = _window(case.label, corner, corner + crop, 0)
        return hu_crop.astype(np.float32), label_crop.astype(np.uint8)
    centre = corner + (crop - 1) / 2
    low = np.floor(centre - warp.reach_vox).astype(int)
    high = np.ceil(centre + warp.reach_vox).astype(int) + 1
    hu = torch.from_numpy(_window(case.hu, low, high, AIR_HU).astype(np.float32))
    label = torch.from_numpy(_window(case.label, low, high, 0).astype(np.float32))
    grid = _sampling_grid(warp, centre - low, crop, np.array(hu.shape))
    warped_hu = functional.grid_sample(
        hu[None, None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    warped_label = functional.grid_sample(
        label[None, None], grid, mode="nearest", padding_mode="border", align_corners=True
    )
    return warped_hu[0, 0].numpy(), warped_label[0, 0].to(torch.uint8).numpy()


def _window(
    array: npt.NDArray[np.generic],
    low: npt.NDArray[np.int_],
    high: npt.NDArray[np.int_],
    fill: float,
) -> npt.NDArray[np.generic]:
    """Return `array[low:high]`, filled with `fill` outside the array."""
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
    """Return the position of each voxel of the crop, `(1, X, Y, Z, 3)`.

    The format is that of `grid_sample`: -1..1 over the window's voxel centres, the last axis first.
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
        position = (x + y + origin[axis]) + z
        if warp.field is not None:
            position += np.tensordot(matrix[axis], warp.field, 1)
        grid[0, ..., 2 - axis] = position
    return torch.from_numpy(grid)
