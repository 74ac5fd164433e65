"""What others reached: mean DSC per organ, for the charts' reference marks.

The networks' values are those on the PDDCA test set; but for OrganNet2.5D's, and UaNet's mean, values per organ
are quoted from secondary sources. Training sets differ: landmarks, not a comparison on the same patients.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_PDDCA_ORDER = ("Brainstem", "OpticChiasm", "Bone_Mandible", "OpticNrv_L", "OpticNrv_R", "Parotid_L",
                "Parotid_R", "Glnd_Submand_L", "Glnd_Submand_R")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """One line of a published table.

    Attributes:
        name: What the chart calls it.
        citation: Where it is published.
        dsc: TG-263 name -> mean DSC, 0 to 1.
    """

    name: str
    citation: str
    dsc: Mapping[str, float]


def _pddca(name: str, citation: str, *percent: float) -> PublishedResult:
    dsc = {o: round(p / 100, 4) for o, p in zip(_PDDCA_ORDER, percent, strict=True)}
    return PublishedResult(name=name, citation=citation, dsc=dsc)


NETWORKS = (
    _pddca(
        "AnatomyNet 2018",
        "Zhu et al., AnatomyNet: deep learning for fast and fully automated whole-volume segmentation of head "
        "and neck anatomy, Med Phys 46:576-589, 2019 (arXiv 2018)",
        86.7, 53.2, 92.5, 72.1, 70.6, 88.1, 87.4, 81.4, 81.3,
    ),
    _pddca(
        "FocusNet 2019",
        "Gao et al., FocusNet: imbalanced large and small organ segmentation with an end-to-end deep neural "
        "network for head and neck CT images, MICCAI 2019",
        87.5, 59.6, 93.5, 73.5, 74.4, 86.3, 87.9, 79.8, 80.1,
    ),
    _pddca(
        "UaNet 2019",
        "Tang et al., Clinically applicable deep learning framework for organs at risk delineation in CT "
        "images, Nat Mach Intell 1:480-491, 2019",
        87.5, 61.5, 95.0, 74.8, 72.3, 88.7, 87.5, 82.3, 81.5,
    ),
    _pddca(
        "SOARS 2020",
        "Guo et al., Organ at risk segmentation for head and neck cancer using stratified learning and neural "
        "architecture search, CVPR 2020",
        87.6, 64.9, 95.1, 75.3, 74.6, 88.2, 88.2, 84.2, 83.8,
    ),
    _pddca(
        "OrganNet2.5D 2021",
        "Chen et al., OrganNet2.5D, MICCAI 2021 (arXiv 2109.12634)",
        87.2, 66.3, 92.2, 75.0, 74.1, 86.7, 85.8, 82.1, 82.1,
    ),
)  # fmt: skip
"""Mean DSC on the test set of PDDCA."""

HUMAN = PublishedResult(
    name="Two observers (TCIA, 28 scans)",
    citation="Radiographer against oncologist on 28 scans of TCIA, expert masks of Nikolov et al. 2021",
    dsc={
        "Brainstem": 0.900,
        "Bone_Mandible": 0.942,
        "OpticNrv_L": 0.793,
        "OpticNrv_R": 0.784,
        "Parotid_L": 0.871,
        "Parotid_R": 0.874,
        "Glnd_Submand_L": 0.881,
        "Glnd_Submand_R": 0.876,
        "SpinalCord": 0.843,
        "Cochlea_L": 0.749,
        "Cochlea_R": 0.696,
    },
)
"""How far two people agree, measured for this project on all 28 scans of the expert masks."""
