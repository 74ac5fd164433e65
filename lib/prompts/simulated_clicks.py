"""Simulated clicks: where an annotator would click to correct a contour, for training and evaluation.

Sakinis et al. (arXiv 1903.08205, 2019) and DeepEdit (Diaz-Pinto et al., MICCAI DALI 2022) click in the middle
of the largest error. They draw the voxel at random, weighted by its distance from the error's border; here it
is the voxel farthest from the border, so that an evaluation is repeatable.
"""

import numpy as np
from scipy import ndimage

from lib.imaging.quantities import MaskArray, SpacingMm
from lib.prompts.refinement import Prompt


def next_click(reference: MaskArray, prediction: MaskArray, spacing_mm: SpacingMm) -> Prompt | None:
    """Return the click in the middle of the largest error; None if the masks are equal.

    The largest error is the connected region of most voxels that the prediction lacks, or has in excess.

    Args:
        reference: `(X, Y, Z)`.
        prediction: `(X, Y, Z)`.
        spacing_mm: Voxel size.
    """
    largest, is_add, size = None, True, 0
    for is_missing in (True, False):
        error = reference & ~prediction if is_missing else prediction & ~reference
        regions, count = ndimage.label(error)
        if count == 0:
            continue
        sizes = np.bincount(regions.ravel())[1:]
        number = int(sizes.argmax())
        if sizes[number] > size:
            box = ndimage.find_objects(regions)[number]
            largest, is_add, size = (regions[box] == number + 1, box), is_missing, sizes[number]
    if largest is None:
        return None
    region, box = largest
    depth_mm = ndimage.distance_transform_edt(np.pad(region, 1), sampling=spacing_mm)[
        1:-1, 1:-1, 1:-1
    ]
    voxel = np.array(np.unravel_index(int(depth_mm.argmax()), region.shape))
    return Prompt((voxel + [side.start for side in box])[None], is_add)
