"""Plausibility checks of a label against its CT: swapped sides, organs in the wrong tissue or far too large.

The checks need no model and no other case, so that they work for the first label, on any scanner. A warning
does not refuse a label, since the reader may be right. It excludes the label from the evaluation cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray, MaskArray

BONE_HU = 200.0
"""Lower bound of bone in HU."""
AIR_HU = -300.0
"""Upper bound of air in HU."""
LEAST_VOXELS = 20
"""Smallest number of voxels of a checked organ; a smaller organ consists of edge voxels only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the size of an organ, and of its tissue as shares of its volume.

    Attributes:
        most_ml: Largest volume in mL.
        most_bone: Largest share above `BONE_HU`.
        least_bone: Smallest share above `BONE_HU`.
        most_air: Largest share below `AIR_HU`.
    """

    most_ml: float
    most_bone: float = 1.0
    least_bone: float = 0.0
    most_air: float = 1.0


LIMITS: Mapping[str, Limits] = {
    "Brainstem": Limits(most_ml=100, most_bone=0.05, most_air=0.05),
    "SpinalCord": Limits(most_ml=120, most_bone=0.10, most_air=0.10),
    "Parotid_L": Limits(most_ml=160, most_bone=0.15, most_air=0.20),
    "Parotid_R": Limits(most_ml=160, most_bone=0.15, most_air=0.20),
    "Glnd_Submand_L": Limits(most_ml=30, most_bone=0.15, most_air=0.20),
    "Glnd_Submand_R": Limits(most_ml=30, most_bone=0.15, most_air=0.20),
    "Bone_Mandible": Limits(most_ml=220, least_bone=0.50),
    "OpticChiasm": Limits(most_ml=5),
    "OpticNrv_L": Limits(most_ml=5),
    "OpticNrv_R": Limits(most_ml=5),
    "Esophagus": Limits(most_ml=100),
    "Larynx": Limits(most_ml=150),
}
"""TG-263 name -> limits (docs/adr/0017).

The tissue was chosen on the 120 planning CTs of OpenKBP: one clinical label gets a warning (its cord leaves the
scan). All labels get a warning when shifted by 20 mm along any axis, or when their sides are swapped. The
volumes are twice the largest of some 200 clinical contours of OpenKBP and of the expert contours of Nikolov et
al. 2018, without two cords that are no cords (478 and 543 mL). The chiasm and the optic nerves, of 1 mL, have
more room, because a few voxels of a planning CT make a large share of them.
"""


def plausibility_warnings(
    hu: npt.NDArray[Any], label: LabelArray, grid: Grid, labels: Mapping[str, int]
) -> list[str]:
    """Return warnings about a label, one sentence each; an empty list if it looks plausible.

    Args:
        hu: `(X, Y, Z)`, the CT of the label.
        label: `(X, Y, Z)`, on the same grid.
        grid: Grid of both.
        labels: TG-263 name -> value; absent organs are not checked.
    """
    masks = {name: label == value for name, value in labels.items()}
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    present = {name: masks[name] for name, count in counts.items() if count >= LEAST_VOXELS}
    voxel_ml = float(np.prod(grid.spacing_mm)) / 1000
    warnings = (
        [] if any(counts.values()) else ["the label contains no organ; is it the right file?"]
    )
    for name, mask in present.items():
        if name in LIMITS:
            warnings += _size_warnings(name, counts[name] * voxel_ml)
            warnings += _tissue_warnings(name, hu[mask])
    return warnings + _side_warnings(present, grid)


def _size_warnings(name: str, volume_ml: float) -> list[str]:
    most_ml = LIMITS[name].most_ml
    if volume_ml <= most_ml:
        return []
    return [
        f"{name} has {volume_ml:.0f} mL, at most {most_ml:.0f} mL expected; is it another structure, or the "
        "background?"
    ]


def _tissue_warnings(name: str, inside: npt.NDArray[Any]) -> list[str]:
    limits = LIMITS[name]
    bone, air = float((inside > BONE_HU).mean()), float((inside < AIR_HU).mean())
    warnings = []
    if bone > limits.most_bone:
        warnings.append(f"{name} lies on bone for {bone:.0%} of its volume; is it shifted?")
    if bone < limits.least_bone:
        warnings.append(f"only {bone:.0%} of {name} is bone; is it shifted?")
    if air > limits.most_air:
        warnings.append(f"{name} lies in air for {air:.0%} of its volume; is it shifted?")
    return warnings


def _side_warnings(present: Mapping[str, MaskArray], grid: Grid) -> list[str]:
    """Return warnings about swapped sides: of a pair, or of one organ relative to the midline organs."""
    x = {name: _x_ras(mask, grid) for name, mask in present.items()}
    midline = [value for name, value in x.items() if not name.endswith(("_L", "_R"))]
    warnings = []
    for stem in sorted({name[:-2] for name in x if name.endswith(("_L", "_R"))}):
        left, right = x.get(f"{stem}_L"), x.get(f"{stem}_R")
        if left is not None and right is not None:
            if left > right:
                warnings.append(f"{stem}_L lies to the right of {stem}_R; are the sides swapped?")
        elif midline and left is not None and left > np.mean(midline):
            warnings.append(f"{stem}_L lies on the right; is it {stem}_R?")
        elif midline and right is not None and right < np.mean(midline):
            warnings.append(f"{stem}_R lies on the left; is it {stem}_L?")
    return warnings


def _x_ras(mask: MaskArray, grid: Grid) -> float:
    """Return the x coordinate of the mask's centre in mm RAS; +x is the patient's right."""
    centre = np.argwhere(mask).mean(axis=0)
    return float((grid.affine_ras @ np.append(centre, 1.0))[0])
