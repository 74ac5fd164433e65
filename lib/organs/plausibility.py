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
from lib.imaging.quantities import LabelArray
from lib.imaging.volumes import LabelVolume, centre_ras_mm

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


@dataclass(frozen=True, slots=True)
class PlausibilityWarning:
    """One implausible property of a label."""

    text: str
    """One sentence."""
    organs: tuple[str, ...] = ()
    """TG-263 names of the organs that it concerns; empty if it concerns the whole label."""


def plausibility_warnings(
    hu: npt.NDArray[Any], label: LabelArray, grid: Grid, labels: Mapping[str, int]
) -> list[str]:
    """Return the sentences of `find_implausible`; an empty list if the label looks plausible.

    Args:
        hu: `(X, Y, Z)`, the CT of the label.
        label: `(X, Y, Z)`, on the same grid.
        grid: Grid of both.
        labels: TG-263 name -> value; absent organs are not checked.
    """
    return [warning.text for warning in find_implausible(hu, LabelVolume(label, grid, labels))]


def find_implausible(hu: npt.NDArray[Any], label: LabelVolume) -> list[PlausibilityWarning]:
    """Return warnings about a label; an empty list if it looks plausible.

    Args:
        hu: `(X, Y, Z)`, the CT of the label, on its grid.
        label: The label; absent organs are not checked.
    """
    if not label.boxes:
        return [PlausibilityWarning("the label contains no organ; is it the right file?")]
    voxel_ml = float(np.prod(label.grid.spacing_mm)) / 1000
    warnings = []
    x_ras: dict[str, float] = {}
    for name, box in label.boxes.items():
        mask = label.mask_in_box(name)
        count = int(np.count_nonzero(mask))
        if count < LEAST_VOXELS:
            continue
        if name in LIMITS:
            texts = _size_warnings(name, count * voxel_ml)
            texts += _tissue_warnings(name, hu[box][mask])
            warnings += [PlausibilityWarning(text, (name,)) for text in texts]
        x_ras[name] = float(centre_ras_mm(mask, box, label.grid)[0])
    return warnings + _side_warnings(x_ras)


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


def _side_warnings(x: Mapping[str, float]) -> list[PlausibilityWarning]:
    """Return warnings about swapped sides: of a pair, or of one organ relative to the midline organs.

    Args:
        x: TG-263 name -> x coordinate of the organ's centre in mm RAS; +x is the patient's right.
    """
    midline = [value for name, value in x.items() if not name.endswith(("_L", "_R"))]
    warnings = []
    for stem in sorted({name[:-2] for name in x if name.endswith(("_L", "_R"))}):
        name_l, name_r = f"{stem}_L", f"{stem}_R"
        left, right = x.get(name_l), x.get(name_r)
        if left is not None and right is not None:
            if left > right:
                text = f"{name_l} lies to the right of {name_r}; are the sides swapped?"
                warnings.append(PlausibilityWarning(text, (name_l, name_r)))
        elif midline and left is not None and left > np.mean(midline):
            text = f"{name_l} lies on the right; is it {name_r}?"
            warnings.append(PlausibilityWarning(text, (name_l,)))
        elif midline and right is not None and right < np.mean(midline):
            text = f"{name_r} lies on the left; is it {name_l}?"
            warnings.append(PlausibilityWarning(text, (name_r,)))
    return warnings
