"""Cost of editing a prediction: added path length and changed voxels between prediction and submitted label.

The added path length is that of Vaassen et al., phiRO 2020 (vol. 13, "Evaluation of measures for assessing
time-saving of automatic organ-at-risk segmentation in radiotherapy"): the length of the submitted contour that
does not lie on the predicted one, slice by slice. It correlates with editing time better than DSC and Hausdorff
distance do. As in the paper's program and in PlatiPy, a contour consists of the pixels of a slice that belong
to the organ and have at least one of four neighbours outside it; its length is their number times the pixel
size. Erasing without a new contour in its place adds no path; `changed_voxels` counts it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from lib.errors import LabelError
from lib.evaluation.case_loading import label_boxes, union_box
from lib.evaluation.metrics import dice
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray, MaskArray
from lib.inference.resampling import closest_ras

ROUNDING_MM = 1e-6
"""Margin in mm for rounding errors of distances: a distance equal to the tolerance is within it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganCost:
    """Edits of one organ."""

    dsc: float | None
    """Between submission and prediction, 0 to 1; 0 if the organ is missed, None if it is left out."""
    added_path_mm: float
    """Length of the submitted contour that does not lie on the predicted one."""
    changed_voxels: int
    """Number of voxels in either the submitted or the predicted organ, but not in both."""
    changed_ml: float
    is_left_out: bool = False
    """Predicted but not submitted. The labels do not show whether the organ was erased on purpose or not
    reviewed at all, so it is excluded from all sums."""
    is_missed: bool = False
    """Submitted but not predicted: the whole contour is new."""


@dataclass(frozen=True, slots=True)
class EditCosts:
    """Edits of one prediction; sums are over the submitted organs."""

    organs: Mapping[str, OrganCost]
    """TG-263 name -> cost, for all organs that were predicted or submitted."""

    @property
    def submitted(self) -> dict[str, OrganCost]:
        """Costs of the submitted organs."""
        return {name: cost for name, cost in self.organs.items() if not cost.is_left_out}

    @property
    def left_out(self) -> list[str]:
        """Organs that were predicted but not submitted."""
        return [name for name, cost in self.organs.items() if cost.is_left_out]

    @property
    def mean_dsc(self) -> float | None:
        """Mean over the submitted organs; None if there are none."""
        values = [cost.dsc for cost in self.submitted.values() if cost.dsc is not None]
        return sum(values) / len(values) if values else None

    @property
    def added_path_mm(self) -> float | None:
        """Sum over the submitted organs; None if there are none."""
        return sum(c.added_path_mm for c in self.submitted.values()) if self.submitted else None

    @property
    def changed_voxels(self) -> int | None:
        """Sum over the submitted organs; None if there are none."""
        return sum(c.changed_voxels for c in self.submitted.values()) if self.submitted else None

    def as_dict(self) -> dict[str, Any]:
        """Return organ -> numbers, as they are stored in the database."""
        return {name: asdict(cost) for name, cost in self.organs.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EditCosts":
        """Return the costs from the result of `as_dict`."""
        return cls({name: OrganCost(**numbers) for name, numbers in values.items()})


def edit_cost(
    prediction: LabelArray,
    submitted: LabelArray,
    labels: Mapping[str, int],
    *,
    grid: Grid,
    tolerance_mm: float = 0.0,
) -> EditCosts:
    """Return the edits that turned `prediction` into `submitted`.

    Contours are drawn on axial slices: slices are taken along the array axis closest to the patient's z
    (`closest_ras`), also in an oblique scan. If pixels are not square, their size is the mean of both sides.

    Args:
        prediction: `(X, Y, Z)`.
        submitted: `(X, Y, Z)`, of the same shape.
        labels: TG-263 name -> value in both arrays; other values are ignored.
        grid: Grid of both arrays.
        tolerance_mm: Largest in-slice distance at which one contour counts as lying on the other; 0 in the
        paper.

    Raises:
        LabelError: If the shapes differ.
    """
    if not prediction.shape == submitted.shape == grid.shape_vox:
        raise LabelError(
            f"the prediction has {prediction.shape} voxels, the submitted label {submitted.shape} and the grid "
            f"{grid.shape_vox}; the same shape is expected: resample both to the image's grid"
        )
    boxes_by_value = label_boxes(prediction), label_boxes(submitted)
    organs = {}
    for name, value in labels.items():
        boxes = [by_value[value] for by_value in boxes_by_value if value in by_value]
        if boxes:
            box = union_box(boxes)
            masks = prediction[box] == value, submitted[box] == value
            organs[name] = _organ_cost(*masks, grid=grid, tolerance_mm=tolerance_mm)
    return EditCosts(organs)


def _organ_cost(
    predicted: MaskArray, submitted: MaskArray, *, grid: Grid, tolerance_mm: float
) -> OrganCost:
    """Return the cost of one organ, which at least one mask contains."""
    axial = closest_ras(grid)[0][2]
    across = [s for axis, s in enumerate(grid.spacing_mm) if axis != axial]
    added = added_pixels(
        np.moveaxis(predicted, axial, 0),
        np.moveaxis(submitted, axial, 0),
        spacing_mm=(across[0], across[1]),
        tolerance_mm=tolerance_mm,
    )
    changed = int(np.count_nonzero(predicted ^ submitted))
    is_left_out = not submitted.any()
    return OrganCost(
        dsc=None if is_left_out else dice(submitted, predicted),
        added_path_mm=added * sum(across) / 2,
        changed_voxels=changed,
        changed_ml=changed * grid.voxel_ml,
        is_left_out=is_left_out,
        is_missed=not predicted.any(),
    )


def added_pixels(
    predicted: MaskArray,
    submitted: MaskArray,
    *,
    spacing_mm: tuple[float, float],
    tolerance_mm: float = 0.0,
) -> int:
    """Return the number of pixels of the submitted contour that do not lie on the predicted one.

    Args:
        predicted: `(S, A, B)`, slices first.
        submitted: `(S, A, B)`.
        spacing_mm: Pixel size along A and B.
        tolerance_mm: Largest in-slice distance at which one contour counts as lying on the other.
    """
    old, new = contour_pixels(predicted), contour_pixels(submitted)
    added = new & ~old
    if tolerance_mm > 0:
        for number in np.flatnonzero(added.any(axis=(1, 2)) & old.any(axis=(1, 2))):
            distance_mm = ndimage.distance_transform_edt(~old[number], sampling=spacing_mm)
            added[number] &= distance_mm > tolerance_mm + ROUNDING_MM
    return int(np.count_nonzero(added))


def contour_pixels(mask: MaskArray) -> MaskArray:
    """Return the pixels of each slice of `mask` that have at least one of four neighbours outside it.

    Pixels beyond the array count as outside, so the contour of an organ cut by the scan runs along the cut.

    Args:
        mask: `(S, A, B)`, slices first.
    """
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    inside = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1]
    inside &= padded[:, 1:-1, :-2]
    inside &= padded[:, 1:-1, 2:]
    return np.asarray(mask & ~inside)
