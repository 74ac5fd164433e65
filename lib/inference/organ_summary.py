"""Summary of each contoured organ: size, position, and where and why its contour may be wrong.

The uncertainty ranks the contours of different organs and patients: those with the highest are to be checked
first. It measures no error. On 83 OpenKBP patients that the starter model was not trained on, the mean entropy
of one pass finds the worst tenth of all contours (by DSC) with an area under the ROC curve of 0.79, as well as
eight passes do. Among the contours of one organ it is 0.69, and for the spinal cord no better than chance.

On 23 of these patients the slice with the largest sum of the entropy over the organ has 64 % of the wrong
voxels that the worst slice has. A random slice of the organ has 46 %, and the one with the largest mean entropy
40 %: that is one of the small slices at an end of the organ.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray, MaskArray
from lib.imaging.volumes import Box, CtVolume, LabelVolume, centre_ras_mm
from lib.inference.uncertainty import ModelUncertainty
from lib.organs.plausibility import find_implausible

PointMm = tuple[float, float, float]

UNINFORMATIVE: Mapping[str, str] = {
    "SpinalCord": "the model's uncertainty does not tell good contours of the spinal cord from bad ones: no "
    "better than chance on 83 patients"
}
"""TG-263 name -> why the uncertainty of this organ means nothing."""
NOT_FOUND = "the model found no voxel of this organ"


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertainSlice:
    """The slice of the CT on which an organ's contour is most uncertain.

    Attributes:
        axis: Axis of the CT's array that runs from feet to head: 2 for a DICOM series of axial slices.
        index: Index of the slice along that axis, from 0.
        position_mm: Centre of the organ on this slice, in mm LPS.
    """

    axis: int
    index: int
    position_mm: PointMm


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganSummary:
    """What is known of one organ's contour beside its voxels.

    A number that is missing, or that means nothing, is None; `reason` says why.

    Attributes:
        uncertainty: Mean normalised entropy of the model over the organ, 0 (certain) to 1.
        volume_ml: Volume in mL.
        centre_mm: Centre in mm LPS.
        uncertain_slice: The slice to look at first.
        is_cut: Whether the organ reaches the edge of the CT, so that a part of it may lie outside (`~` in
            TG-263).
        doubts: What is implausible (`lib.organs.plausibility`), one sentence each.
        reason: Why a value is None; empty if there is nothing to explain.
    """

    uncertainty: float | None = None
    volume_ml: float | None = None
    centre_mm: PointMm | None = None
    uncertain_slice: UncertainSlice | None = None
    is_cut: bool | None = None
    doubts: tuple[str, ...] = ()
    reason: str = ""


def organ_summaries(
    ct: CtVolume, label: LabelVolume, uncertainty: ModelUncertainty
) -> dict[str, OrganSummary]:
    """Return the summary of each organ in `label.labels`, contoured or not.

    Args:
        ct: The CT.
        label: The model's contours, on the CT's grid.
        uncertainty: The model's uncertainty, of the same pass.
    """
    warnings = find_implausible(ct.array_hu, label)
    volumes_ml = label.volumes_ml()
    summaries = {}
    for name, value in label.labels.items():
        box = label.boxes.get(name)
        if box is None:
            summaries[name] = OrganSummary(reason=NOT_FOUND)
            continue
        mask = label.mask_in_box(name)
        reason = UNINFORMATIVE.get(name, "")
        mean = None if reason else uncertainty.mean_of(value)
        summaries[name] = OrganSummary(
            uncertainty=None if mean is None else round(mean, 4),
            volume_ml=volumes_ml[name],
            centre_mm=_lps(centre_ras_mm(mask, box, ct.grid)),
            uncertain_slice=_uncertain_slice(mask, box, value, uncertainty),
            is_cut=_reaches_edge(box, ct.grid),
            doubts=tuple(warning.text for warning in warnings if name in warning.organs),
            reason=reason,
        )
    return summaries


def _reaches_edge(box: Box, grid: Grid) -> bool:
    return any(
        part.start == 0 or part.stop == size for part, size in zip(box, grid.shape_vox, strict=True)
    )


def _uncertain_slice(
    mask: MaskArray, box: Box, value: int, uncertainty: ModelUncertainty
) -> UncertainSlice | None:
    """Return the slice with the largest sum of the entropy over the organ; None if it is 0 everywhere."""
    frame = uncertainty.frame
    axis = frame.axes[2]
    others = tuple(a for a in range(3) if a != axis)
    indices = box[axis].start + np.flatnonzero(mask.any(axis=others))
    sums = np.where(uncertainty.likely == value, uncertainty.entropy, 0).sum(axis=(0, 1))
    # The centre of each slice of the CT, in slices of the network.
    from_feet = frame.shape_ras[2] - 1 - indices if frame.flips[2] else indices
    ratio = frame.spacing_ras_mm[2] / frame.spacing_model_mm[2]
    rows = np.floor((from_feet + 0.5) * ratio).astype(int) - uncertainty.box[2].start
    values = sums[np.clip(rows, 0, len(sums) - 1)]
    if not values.max() > 0:
        return None
    best = np.flatnonzero(values == values.max())
    index = int(indices[best[len(best) // 2]])
    slab = [slice(None)] * 3
    slab[axis] = slice(index - box[axis].start, index - box[axis].start + 1)
    x, y, z = (slice(index, index + 1) if a == axis else part for a, part in enumerate(box))
    centre = centre_ras_mm(mask[tuple(slab)], (x, y, z), frame.grid)
    return UncertainSlice(axis=axis, index=index, position_mm=_lps(centre))


def _lps(point_ras_mm: FloatArray) -> PointMm:
    x, y, z = (round(float(value), 2) for value in point_ras_mm)
    return (-x, -y, z)
