"""How well a prediction agrees with a reference: volumes' overlap, and distances between surfaces.

Surfaces are those of DeepMind's `surface-distance` (Nikolov et al., J Med Internet Res 2021, appendix): a
surface element sits where eight neighbouring voxels are not all alike, and weighs as much as its area in mm^2;
distances run between the centres of surface elements. Areas, and the sums over them, are computed by that
package; the nearest element is found by a k-d tree instead of its distance transform (docs/adr/0008).
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

from lib.imaging.quantities import FloatArray, LabelArray, MaskArray, SpacingMm

NAN = float("nan")
_ALL_INSIDE = 255
_CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]


def dice(reference: MaskArray, prediction: MaskArray) -> float:
    """Return the Dice similarity coefficient of two masks of one shape, 0 to 1; NaN where both are empty.

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

    An organ missing from the reference is unknown, not absent: it is left out, whatever was predicted.
    """
    present = set(np.unique(reference).tolist())
    return {
        name: dice(reference == value, prediction == value)
        for name, value in labels.items()
        if value in present
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How one predicted organ agrees with its reference.

    Attributes:
        dsc: Dice similarity coefficient, 0 to 1.
        hd95_mm: 95th percentile of the distances between the surfaces, by area; the larger of both ways.
        surface_dsc: Share of both surfaces, by area, within the tolerance of the other, 0 to 1.
        msd_mm: Mean distance between the surfaces, by area; the mean of both ways.
    """

    dsc: float
    hd95_mm: float
    surface_dsc: float
    msd_mm: float


def agreement(
    reference: MaskArray, prediction: MaskArray, *, spacing_mm: SpacingMm, tolerance_mm: float
) -> Agreement:
    """Return how well `prediction` agrees with `reference`.

    An empty reference says nothing of the prediction: every number is NaN. An empty prediction of an organ
    that is there agrees nowhere: DSC and surface DSC are 0; a distance to nothing is not a number, so HD95
    and the mean distance are NaN, never 0.

    Args:
        reference: `(X, Y, Z)`.
        prediction: `(X, Y, Z)`, of the same shape.
        spacing_mm: Size of a voxel.
        tolerance_mm: Distance up to which, inclusive, two surfaces agree.
    """
    if not reference.any():
        return Agreement(dsc=NAN, hd95_mm=NAN, surface_dsc=NAN, msd_mm=NAN)
    if not prediction.any():
        return Agreement(dsc=0.0, hd95_mm=NAN, surface_dsc=0.0, msd_mm=NAN)
    found = surface_distances(reference, prediction, spacing_mm=spacing_mm)
    there, back = deepmind.compute_average_surface_distance(found)
    return Agreement(
        dsc=dice(reference, prediction),
        hd95_mm=float(deepmind.compute_robust_hausdorff(found, 95.0)),
        surface_dsc=float(deepmind.compute_surface_dice_at_tolerance(found, tolerance_mm)),
        msd_mm=float(there + back) / 2.0,
    )


def surface_distances(
    reference: MaskArray, prediction: MaskArray, *, spacing_mm: SpacingMm
) -> dict[str, FloatArray]:
    """Return each surface element's distance in mm to the other surface, ascending, and its area in mm^2.

    The result is what `surface_distance.compute_surface_distances` returns, with its keys, in less time.

    Args:
        reference: `(X, Y, Z)`, at least one voxel in it.
        prediction: `(X, Y, Z)`, at least one voxel in it.
        spacing_mm: Size of a voxel.
    """
    box = _box(reference | prediction)
    places_gt, areas_gt = _surface(reference[box], spacing_mm)
    places_pred, areas_pred = _surface(prediction[box], spacing_mm)
    there, areas_gt = _nearest_mm(places_gt, areas_gt, places_pred, spacing_mm)
    back, areas_pred = _nearest_mm(places_pred, areas_pred, places_gt, spacing_mm)
    return {
        "distances_gt_to_pred": there,
        "distances_pred_to_gt": back,
        "surfel_areas_gt": areas_gt,
        "surfel_areas_pred": areas_pred,
    }


def _box(mask: MaskArray) -> tuple[slice, ...]:
    """Return the smallest box around a mask that is not empty."""
    slices = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        slices.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(slices)


def _surface(mask: MaskArray, spacing_mm: SpacingMm) -> tuple[FloatArray, FloatArray]:
    """Return the index `(N, 3)` of each surface element, counted between voxels, and its area in mm^2."""
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
    """Return the area of the surface between eight voxels, for each way that they can be in or out."""
    return np.asarray(create_table_neighbour_code_to_surface_area(spacing_mm), np.float64)


def _nearest_mm(
    places: FloatArray, areas: FloatArray, others: FloatArray, spacing_mm: SpacingMm
) -> tuple[FloatArray, FloatArray]:
    """Return the distances from `places` to the nearest of `others`, ascending, and `areas` in that order.

    Distances come from whole steps times the spacing, so that one of exactly the tolerance counts as within
    it whatever the position.
    """
    spacing = np.array(spacing_mm)
    _, nearest = cKDTree(others * spacing).query(places * spacing)
    distances = np.sqrt((((places - others[nearest]) * spacing) ** 2).sum(axis=1))
    order = np.argsort(distances, kind="stable")
    return distances[order], areas[order]
