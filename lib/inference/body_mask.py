"""Where the patient is: the body without table, mask and air."""

import numpy as np
import SimpleITK as sitk

from lib.imaging.quantities import FloatArray, MaskArray

BODY_HU = -350.0
"""Between fat (-100 HU) and the foam of a table or mask (below -500 HU)."""

MARGIN_MM = 12.0
"""Kept around the body, so that no organ at its edge loses context."""


def body_mask(array_hu: FloatArray) -> MaskArray:
    """Return the largest connected piece denser than `BODY_HU`, `(X, Y, Z)`.

    Opened by one voxel first, so that a head rest that touches the skin falls away. Where nothing is that
    dense, the mask is empty.
    """
    dense = sitk.GetImageFromArray((array_hu > BODY_HU).astype(np.uint8))
    opened = sitk.BinaryMorphologicalOpening(dense, [1, 1, 1])
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True)
    return np.asarray(sitk.GetArrayFromImage(pieces) == 1)


def body_box(array_hu: FloatArray, spacing_mm: FloatArray) -> tuple[slice, slice, slice]:
    """Return the box of the body with its margin; the whole volume where there is no body."""
    mask = body_mask(array_hu)
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        size = array_hu.shape[axis]
        if inside.size == 0:
            return (
                slice(0, array_hu.shape[0]),
                slice(0, array_hu.shape[1]),
                slice(0, array_hu.shape[2]),
            )
        margin = round(MARGIN_MM / float(spacing_mm[axis]))
        slices.append(
            slice(max(0, int(inside[0]) - margin), min(size, int(inside[-1]) + 1 + margin))
        )
    return (slices[0], slices[1], slices[2])
