"""Masks that may share voxels -> one label volume."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from lib.errors import LabelError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import MaskArray
from lib.imaging.volumes import LabelVolume

MAX_SHARED = 0.5
"""Two organs that share more than this part of the smaller one were not drawn as two organs."""


def combine(
    masks: Mapping[str, MaskArray], labels: Mapping[str, int], grid: Grid, image_id: str
) -> tuple[LabelVolume, dict[str, int]]:
    """Return the label volume, and `"A & B"` -> voxels that both organs claim.

    A voxel that several organs claim becomes the smallest one's: a few voxels are much of an optic nerve and
    nothing of a parotid gland. Of two organs of one size the one with the lower value wins.

    Raises:
        LabelError: If two share over half of the smaller one.
    """
    sizes = {organ: int(np.count_nonzero(mask)) for organ, mask in masks.items()}
    shared = {}
    for a, b in combinations(sorted(masks, key=labels.__getitem__), 2):
        count = int(np.count_nonzero(masks[a] & masks[b]))
        if count > MAX_SHARED * min(sizes[a], sizes[b]):
            raise LabelError(
                f"{image_id}: {a} ({sizes[a]} voxels) and {b} ({sizes[b]}) share {count} voxels; one of them "
                "carries the wrong name"
            )
        if count:
            shared[f"{a} & {b}"] = count
    array = np.zeros(grid.shape_vox, np.uint8)
    for organ in sorted(masks, key=lambda o: (-sizes[o], -labels[o])):
        array[masks[organ]] = labels[organ]
    return LabelVolume(array, grid, {o: labels[o] for o in labels if o in masks}), shared
