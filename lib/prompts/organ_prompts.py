"""The prompts of one organ as a client sends them, checked against the CT."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lib.errors import ConfigError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import MaskArray
from lib.inference.resampling import Box
from lib.prompts.refinement import Prompt

MAX_PROMPTS = 100
"""Largest number of clicks and scribbles of one organ."""
MAX_SCRIBBLE_VOX = 100_000
"""Largest number of voxels of all scribbles of one organ."""
MAX_BOX_VOX = 8_000_000
"""Largest number of voxels of the box around all prompts."""


@dataclass(frozen=True, slots=True)
class DrawnMask:
    """The organ as it is drawn now; there is nothing of it outside the box.

    Attributes:
        box: In voxels of the CT.
        mask: `(X, Y, Z)` of the box.
    """

    box: Box
    mask: MaskArray

    def within(self, box: Box) -> MaskArray:
        """Return the mask in another box of the same CT."""
        result = np.zeros([side.stop - side.start for side in box], bool)
        source, target = [], []
        for own, other in zip(self.box, box, strict=True):
            low, high = max(own.start, other.start), min(own.stop, other.stop)
            if low >= high:
                return result
            source.append(slice(low - own.start, high - own.start))
            target.append(slice(low - other.start, high - other.start))
        result[tuple(target)] = self.mask[tuple(source)]
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganPrompts:
    """The clicks and scribbles of one organ, in the order in which they were made.

    Attributes:
        organ: TG-263 name.
        prompts: In voxels of the CT.
        drawn: The organ as it is drawn now; None for the model's contour.
        is_overwriting: Whether voxels of other organs of the model's contours may be added.
    """

    organ: str
    prompts: Sequence[Prompt]
    drawn: DrawnMask | None = None
    is_overwriting: bool = False


def voxel_at(grid: Grid, point_mm: Sequence[float]) -> npt.NDArray[np.intp]:
    """Return the index of the voxel `(3,)` that contains a world position in LPS, in mm."""
    to_voxel = np.linalg.inv(ras_to_lps(grid.affine_ras))
    index = to_voxel @ np.array([*point_mm, 1.0])
    # A position far outside does not fit into an integer; such an index is outside of any grid too.
    return np.asarray(np.rint(np.clip(index[:3], -1e9, 1e9)), dtype=np.intp)


def require_prompts(prompts: Sequence[Prompt], grid: Grid, *, image_id: str) -> None:
    """Check the number of the prompts, and that they lie in the scan.

    Raises:
        ConfigError: If there are too many, or a voxel is outside of the scan.
    """
    if len(prompts) > MAX_PROMPTS:
        raise ConfigError(
            f"{image_id}: {len(prompts)} clicks and scribbles for one organ; at most {MAX_PROMPTS} expected: "
            "accept the contour, and correct the rest with the brush"
        )
    drawn = sum(len(prompt.voxels) for prompt in prompts if len(prompt.voxels) > 1)
    if drawn > MAX_SCRIBBLE_VOX:
        raise ConfigError(
            f"{image_id}: the scribbles have {drawn} voxels; at most {MAX_SCRIBBLE_VOX} expected: "
            "draw thin lines"
        )
    shape = np.array(grid.shape_vox)
    for number, prompt in enumerate(prompts, start=1):
        is_outside = ((prompt.voxels < 0) | (prompt.voxels >= shape)).any(axis=1)
        if is_outside.any():
            voxel = prompt.voxels[is_outside.argmax()].tolist()
            raise ConfigError(
                f"{image_id}: click or scribble {number} is at voxel {voxel}, outside of the scan of "
                f"{' x '.join(map(str, grid.shape_vox))} voxels; click inside the scan"
            )
