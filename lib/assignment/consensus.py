"""Consensus of several readers' labels of the same CT, and the agreement between the readers.

An organ that a reader left out is unknown, not absent (ADR 0005): the consensus of an organ is made from the
readers who drew it. If one reader drew it, it is that reader's contour; if none did, it is absent.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt

from lib.errors import ConfigError, LabelError
from lib.evaluation.metrics import organ_dice
from lib.imaging.geometry import require_same_grid
from lib.imaging.quantities import FloatArray, LabelArray, MaskArray, SpacingMm
from lib.imaging.volumes import LabelVolume

Method = Literal["staple", "majority"]
METHODS: tuple[Method, ...] = ("staple", "majority")

MARGIN_VOX = 2
"""Margin in voxels around an organ in STAPLE's input; a whole CT's background would shrink every organ."""
MAX_ITERATIONS = 100
"""Largest number of iterations of STAPLE."""
_THRESHOLD = 0.5
_TIE = 1e-6

Agreements = dict[tuple[str, str], dict[str, float | None]]
"""Two readers -> organ -> DSC."""


def consensus(
    labels: Sequence[LabelVolume], *, method: Method = "staple", image_id: str = "consensus"
) -> LabelVolume:
    """Return the consensus of several readers' labels, on their grid.

    - `staple`: Warfield, Zou and Wells, IEEE TMI 2004, as implemented in ITK: each reader's sensitivity and
      specificity are estimated together with the organ, in its box with a margin of `MARGIN_VOX`, and a
      voxel belongs to the organ if its probability is above 0.5.
    - `majority`: a voxel belongs to the organ where more than half of the readers who drew it include it.

    Two readers tie wherever they differ (with STAPLE if one contour lies within the other). Then neither
    the union nor the intersection is taken: the border runs halfway, where the mean of the signed distances to
    the readers' contours is 0 mm (Rohlfing and Maurer, IEEE TITB 2007); a voxel on it belongs to the organ.
    A voxel of two organs is assigned to the more probable one; on a tie, to the one of lower value.

    Args:
        labels: At least one.
        method: See above.
        image_id: Id of the image, for messages.

    Raises:
        ConfigError: If there is no such method.
        LabelError: If there is no label.
        GeometryError: If the labels lie on different grids.
    """
    if method not in METHODS:
        raise ConfigError(
            f"{method!r}: unknown consensus method; expected one of {', '.join(METHODS)}"
        )
    if not labels:
        raise LabelError(f"{image_id}: no labels for a consensus; at least one expected")
    first = labels[0]
    for label in labels[1:]:
        require_same_grid(image_id, label=label.grid, image=first.grid)
    result = np.zeros(first.array.shape, np.uint8)
    box = _box([label.array > 0 for label in labels])
    if box is not None:
        arrays = [label.array[box] for label in labels]
        result[box] = _merged(arrays, first.labels, first.grid.spacing_mm, method)
    return LabelVolume(result, first.grid, first.labels)


def _merged(
    arrays: Sequence[LabelArray], values: Mapping[str, int], spacing_mm: SpacingMm, method: Method
) -> LabelArray:
    merged = np.zeros(arrays[0].shape, np.uint8)
    best = np.zeros(arrays[0].shape, np.float32)
    for value in sorted(values.values()):
        masks = [mask for array in arrays if (mask := array == value).any()]
        box = _box(masks)
        if box is None:
            continue
        is_organ, probability = _organ([mask[box] for mask in masks], spacing_mm, method)
        wins = is_organ & (probability > best[box])
        merged[box][wins] = value
        best[box][wins] = probability[wins]
    return merged


def _organ(
    masks: Sequence[MaskArray], spacing_mm: SpacingMm, method: Method
) -> tuple[MaskArray, FloatArray]:
    """Return mask and probability of an organ in its box; no mask of `masks` is empty."""
    if all(np.array_equal(mask, masks[0]) for mask in masks[1:]):
        return masks[0], masks[0].astype(np.float32)
    padded = [np.pad(mask, MARGIN_VOX) for mask in masks]
    votes = np.asarray(np.mean(padded, axis=0, dtype=np.float32))
    probability = _staple(padded) if method == "staple" else votes
    is_tied = np.abs(probability - _THRESHOLD) <= _TIE
    is_organ = (probability > _THRESHOLD) & ~is_tied
    if is_tied.any():
        is_organ |= is_tied & (_mean_distance_mm(padded, spacing_mm) <= 0)
    inner = (slice(MARGIN_VOX, -MARGIN_VOX),) * 3
    # The margin is never organ, as no reader drew there.
    return is_organ[inner], probability[inner].astype(np.float32)


def _staple(masks: Sequence[MaskArray]) -> FloatArray:
    """Return the probability that each voxel is organ."""
    staple = sitk.STAPLEImageFilter()
    staple.SetForegroundValue(1.0)
    staple.SetMaximumIterations(MAX_ITERATIONS)
    probability = staple.Execute([sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks])
    return np.asarray(sitk.GetArrayFromImage(probability))


def _mean_distance_mm(masks: Sequence[MaskArray], spacing_mm: SpacingMm) -> FloatArray:
    """Return the mean over the masks of the distance in mm to their border, negative inside."""
    total = np.zeros(masks[0].shape, np.float64)
    for mask in masks:
        total += distance_transform_edt(~mask, sampling=spacing_mm)
        total -= distance_transform_edt(mask, sampling=spacing_mm)
    return total / len(masks)


def _box(masks: Sequence[MaskArray]) -> tuple[slice, ...] | None:
    """Return the smallest box around several masks; None if all are empty."""
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        inside = [np.flatnonzero(mask.any(axis=others)) for mask in masks]
        indices = np.concatenate([*inside, np.zeros(0, np.intp)])
        if not indices.size:
            return None
        slices.append(slice(int(indices.min()), int(indices.max()) + 1))
    return tuple(slices)


def observer_agreement(labels: Sequence[LabelVolume], names: Sequence[str]) -> Agreements:
    """Return the DSC between every two readers, of each organ that at least one of the two drew.

    An organ that only one of them drew has None: it is unknown to the other, not absent (ADR 0005). An
    organ that neither drew is left out.

    Args:
        labels: Labels of the same image, on one grid.
        names: The reader of each label; pairs keep this order.

    Raises:
        GeometryError: If the labels lie on different grids.
    """
    agreements: Agreements = {}
    organs = [set(label.volumes_ml()) for label in labels]
    for i, j in combinations(range(len(labels)), 2):
        first, second = labels[i], labels[j]
        require_same_grid(f"{names[i]} and {names[j]}", label=second.grid, image=first.grid)
        both = {k: v for k, v in first.labels.items() if k in organs[i] & organs[j]}
        dsc = organ_dice(first.array, second.array, both)
        either = organs[i] | organs[j]
        agreements[names[i], names[j]] = {
            organ: dsc.get(organ) for organ in first.labels if organ in either
        }
    return agreements


def mean_agreement(agreements: Agreements) -> dict[str, float]:
    """Return the mean DSC of each organ over the pairs of readers who both drew it."""
    by_organ: dict[str, list[float]] = {}
    for dsc in agreements.values():
        for organ, value in dsc.items():
            if value is not None:
                by_organ.setdefault(organ, []).append(value)
    return {organ: float(np.mean(values)) for organ, values in by_organ.items()}
