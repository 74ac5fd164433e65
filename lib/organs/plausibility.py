"""What makes a contour look wrong, by the CT alone: sides that are swapped, an organ that lies on other tissue.

No model and no other case is asked, so that it holds for the first label of all, on any scanner. A doubt does
not refuse a label: a person may know better. It keeps the label from judging models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray, MaskArray

BONE_HU = 200.0
AIR_HU = -300.0
LEAST_VOXELS = 20
"""An organ of fewer voxels is all edge: nothing can be said of its tissue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tissue:
    """Of what an organ consists at most and at least, as shares of its volume.

    Attributes:
        most_bone: Above `BONE_HU`.
        least_bone: The same.
        most_air: Below `AIR_HU`.
    """

    most_bone: float = 1.0
    least_bone: float = 0.0
    most_air: float = 1.0


TISSUES: Mapping[str, Tissue] = {
    "Brainstem": Tissue(most_bone=0.05, most_air=0.05),
    "SpinalCord": Tissue(most_bone=0.10, most_air=0.10),
    "Parotid_L": Tissue(most_bone=0.15, most_air=0.20),
    "Parotid_R": Tissue(most_bone=0.15, most_air=0.20),
    "Glnd_Submand_L": Tissue(most_bone=0.15, most_air=0.20),
    "Glnd_Submand_R": Tissue(most_bone=0.15, most_air=0.20),
    "Bone_Mandible": Tissue(least_bone=0.50),
}
"""Chosen on the 120 planning CTs of OpenKBP: one clinical label is doubted (its cord leaves the scan), and
all are once they are shifted by 20 mm, along any axis, or their sides are swapped (docs/adr/0017)."""


def plausibility_warnings(
    hu: npt.NDArray[Any], label: LabelArray, grid: Grid, labels: Mapping[str, int]
) -> list[str]:
    """Return what looks wrong about a label, in sentences; nothing where it looks right.

    Args:
        hu: `(X, Y, Z)`, the CT that it was drawn on.
        label: `(X, Y, Z)`, on the same grid.
        grid: Of both.
        labels: TG-263 name -> value. An organ that is absent is not doubted.
    """
    masks = {name: label == value for name, value in labels.items()}
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    present = {name: masks[name] for name, count in counts.items() if count >= LEAST_VOXELS}
    found = [text for name in present for text in _tissue_doubts(name, hu[present[name]])]
    return found + _side_doubts(present, grid)


def _tissue_doubts(name: str, inside: npt.NDArray[Any]) -> list[str]:
    tissue = TISSUES.get(name)
    if tissue is None:
        return []
    bone, air = float((inside > BONE_HU).mean()), float((inside < AIR_HU).mean())
    found = []
    if bone > tissue.most_bone:
        found.append(f"{name} lies on bone for {bone:.0%} of its volume; is it shifted?")
    if bone < tissue.least_bone:
        found.append(f"only {bone:.0%} of {name} is bone; is it shifted?")
    if air > tissue.most_air:
        found.append(f"{name} lies in air for {air:.0%} of its volume; is it shifted?")
    return found


def _side_doubts(present: Mapping[str, MaskArray], grid: Grid) -> list[str]:
    """Return doubts about sides: of two organs of a pair, or of one against what lies in the middle."""
    x = {name: _x_ras(mask, grid) for name, mask in present.items()}
    middle = [value for name, value in x.items() if not name.endswith(("_L", "_R"))]
    found = []
    for stem in sorted({name[:-2] for name in x if name.endswith(("_L", "_R"))}):
        left, right = x.get(f"{stem}_L"), x.get(f"{stem}_R")
        if left is not None and right is not None:
            if left > right:
                found.append(f"{stem}_L lies to the right of {stem}_R; are the sides swapped?")
        elif middle and left is not None and left > np.mean(middle):
            found.append(f"{stem}_L lies on the right; is it {stem}_R?")
        elif middle and right is not None and right < np.mean(middle):
            found.append(f"{stem}_R lies on the left; is it {stem}_L?")
    return found


def _x_ras(mask: MaskArray, grid: Grid) -> float:
    """Return where the mask's centre lies from left to right, in mm; +x is the patient's right."""
    centre = np.argwhere(mask).mean(axis=0)
    return float((grid.affine_ras @ np.append(centre, 1.0))[0])
