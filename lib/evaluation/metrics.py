"""Metrics of agreement between a prediction and a reference: volume overlap and surface distances.

Surfaces are defined as in DeepMind's `surface-distance` (Nikolov et al., J Med Internet Res 2021, appendix): a
surface element lies where eight neighbouring voxels are not all equal, and is weighted by its area in mm^2;
distances are measured between the centres of surface elements. The package computes areas and the sums over
them; a k-d tree replaces its distance transform in the search for the nearest element (docs/adr/0008).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import surface_distance as deepmind
from scipy.spatial import cKDTree
from surface_distance.lookup_tables import (
    ENCODE_NEIGHBOURHOOD_3D_KERNEL,
    create_table_neighbour_code_to_surface_area,
)

from lib.evaluation.case_loading import label_boxes
from lib.imaging.quantities import FloatArray, LabelArray, MaskArray, SpacingMm

NAN = float("nan")
_ALL_INSIDE = 255
_CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]


def dice(reference: MaskArray, prediction: MaskArray) -> float:
    """Return the Dice similarity coefficient of two masks of one shape, 0 to 1; NaN if both are empty.

    Dice, Ecology 1945: `2 |A and B| / (|A| + |B|)`.
    """
    total = int(np.count_nonzero(reference)) + int(np.count_nonzero(prediction))
    if total == 0:
        return NAN
    return 2.0 * int(np.count_nonzero(reference & prediction)) / total


def organ_dice(
    reference: LabelArray, prediction: LabelArray, labels: Mapping[str, int]
) -> dict[str, float]:
    """Return the DSC of each organ that the reference contains.

    An organ missing from the reference is unknown rather than absent: it is left out, whatever was predicted.
    """
    present = set(np.unique(reference).tolist())
    return {
        name: dice(reference == value, prediction == value)
        for name, value in labels.items()
        if value in present
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of one predicted organ with its reference."""

    dsc: float
    """Dice similarity coefficient, 0 to 1."""
    hd95_mm: float
    """95th percentile, weighted by area, of the distances between the surfaces; the larger of both
    directions."""
    surface_dsc: float
    """Share of the area of both surfaces within the tolerance of the other one, 0 to 1."""
    msd_mm: float
    """Mean distance between the surfaces, weighted by area; the mean of both directions."""


def agreement(
    reference: MaskArray, prediction: MaskArray, *, spacing_mm: SpacingMm, tolerance_mm: float
) -> Agreement:
    """Return the agreement of `prediction` with `reference`.

    With an empty reference every number is NaN. With an empty prediction, DSC and surface DSC are 0; the
    distances are NaN, never 0, because a distance to nothing is undefined.

    Args:
        reference: `(X, Y, Z)`.
        prediction: `(X, Y, Z)`, of the same shape.
        spacing_mm: Size of a voxel.
        tolerance_mm: Largest distance, inclusive, at which two surfaces agree.
    """
    if not reference.any():
        return Agreement(dsc=NAN, hd95_mm=NAN, surface_dsc=NAN, msd_mm=NAN)
    if not prediction.any():
        return Agreement(dsc=0.0, hd95_mm=NAN, surface_dsc=0.0, msd_mm=NAN)
    distances = surface_distances(reference, prediction, spacing_mm=spacing_mm)
    to_prediction, to_reference = deepmind.compute_average_surface_distance(distances)
    return Agreement(
        dsc=dice(reference, prediction),
        hd95_mm=float(deepmind.compute_robust_hausdorff(distances, 95.0)),
        surface_dsc=float(deepmind.compute_surface_dice_at_tolerance(distances, tolerance_mm)),
        msd_mm=float(to_prediction + to_reference) / 2.0,
    )


def surface_distances(
    reference: MaskArray, prediction: MaskArray, *, spacing_mm: SpacingMm
) -> dict[str, FloatArray]:
    """Return each surface element's distance in mm to the other surface, ascending, and its area in mm^2.

    The result and its keys are those of `surface_distance.compute_surface_distances`, computed in less time.

    Args:
        reference: `(X, Y, Z)`, not empty.
        prediction: `(X, Y, Z)`, not empty.
        spacing_mm: Size of a voxel.
    """
    box = label_boxes((reference | prediction).view(np.uint8))[1]
    centres_gt, areas_gt = _surface(reference[box], spacing_mm)
    centres_pred, areas_pred = _surface(prediction[box], spacing_mm)
    to_prediction, areas_gt = _nearest_mm(centres_gt, areas_gt, centres_pred, spacing_mm)
    to_reference, areas_pred = _nearest_mm(centres_pred, areas_pred, centres_gt, spacing_mm)
    return {
        "distances_gt_to_pred": to_prediction,
        "distances_pred_to_gt": to_reference,
        "surfel_areas_gt": areas_gt,
        "surfel_areas_pred": areas_pred,
    }


def _surface(mask: MaskArray, spacing_mm: SpacingMm) -> tuple[FloatArray, FloatArray]:
    """Return the position `(N, 3)` of each surface element, in voxels, and its area in mm^2."""
    padded = np.pad(mask.astype(np.uint8), 1)
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for x, y, z in _CORNERS:
        weight = np.uint8(ENCODE_NEIGHBOURHOOD_3D_KERNEL[x, y, z])
        part = padded[x : x + codes.shape[0], y : y + codes.shape[1], z : z + codes.shape[2]]
        codes += weight * part
    where = np.nonzero((codes != 0) & (codes != _ALL_INSIDE))
    return np.stack(where, axis=1).astype(np.float64), _areas_mm2(spacing_mm)[codes[where]]


@lru_cache(maxsize=64)
def _areas_mm2(spacing_mm: SpacingMm) -> FloatArray:
    """Return the surface area between eight voxels for each of the 256 combinations of inside and outside."""
    return np.asarray(create_table_neighbour_code_to_surface_area(spacing_mm), np.float64)


def _nearest_mm(
    centres: FloatArray, areas: FloatArray, others: FloatArray, spacing_mm: SpacingMm
) -> tuple[FloatArray, FloatArray]:
    """Return the distances from `centres` to the nearest of `others`, ascending, and `areas` in that order."""
    spacing = np.array(spacing_mm)
    _, nearest = cKDTree(others * spacing).query(centres * spacing)
    # Index differences are exact, so a distance equal to the tolerance is within it at every position.
    distances = np.sqrt((((centres - others[nearest]) * spacing) ** 2).sum(axis=1))
    order = np.argsort(distances, kind="stable")
    return distances[order], areas[order]
