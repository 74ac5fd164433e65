"""The organ table: names, label values, codes, colours, paired organs and tolerances.

Names are the primary names of AAPM TG-263 (report section 7.2). SNOMED CT codes are those of the body
structure; the side is a separate code that follows from the name's suffix (`LATERALITY`). Colours are chosen
to be distinguishable over a grey CT, with a different colour for each side. Tolerances are the 95th percentile
of the distance between two experts' surfaces (Nikolov et al., J Med Internet Res 2021, table 1), used for the
surface DSC; for organs that the paper does not list, see `tolerance_source`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lib.errors import ConfigError

LATERALITY: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"_L": ("7771000", "Left"), "_R": ("24028007", "Right")}
)
"""Suffix of a TG-263 name -> SNOMED CT code and meaning of the side."""

NIKOLOV = "Nikolov et al. 2021, table 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Organ:
    """One organ at risk.

    Attributes:
        name: TG-263 primary name.
        snomed_code: SNOMED CT code of the structure, without its side.
        snomed_meaning: Preferred term of that code.
        colour_rgb: Display colour, 0..255.
        tolerance_mm: Distance between surfaces that counts as agreement.
        tolerance_source: Where `tolerance_mm` comes from.
    """

    name: str
    snomed_code: str
    snomed_meaning: str
    colour_rgb: tuple[int, int, int]
    tolerance_mm: float
    tolerance_source: str = NIKOLOV

    @property
    def side(self) -> str | None:
        """`"_L"`, `"_R"`, or None for an organ on the midline."""
        return self.name[-2:] if self.name[-2:] in LATERALITY else None

    @property
    def mirror(self) -> str:
        """Name of the organ that this one becomes in a left-right mirrored patient."""
        swapped = {"_L": "_R", "_R": "_L"}
        return self.name if self.side is None else self.name[:-2] + swapped[self.side]


def _pair(
    stem: str,
    code: str,
    meaning: str,
    *,
    colours_rgb: tuple[tuple[int, int, int], tuple[int, int, int]],
    tolerance_mm: float,
) -> tuple[Organ, Organ]:
    """Return the left and the right organ of a pair."""
    left, right = (
        Organ(
            name=f"{stem}{side}",
            snomed_code=code,
            snomed_meaning=meaning,
            colour_rgb=colour,
            tolerance_mm=tolerance_mm,
        )
        for side, colour in zip(("_L", "_R"), colours_rgb, strict=True)
    )
    return left, right


_ALL = (
    Organ(
        name="Brainstem",
        snomed_code="15926001",
        snomed_meaning="Brainstem structure",
        colour_rgb=(90, 170, 255),
        tolerance_mm=2.50,
    ),
    Organ(
        name="OpticChiasm",
        snomed_code="244453006",
        snomed_meaning="Structure of optic chiasm",
        colour_rgb=(255, 105, 180),
        tolerance_mm=2.50,
        tolerance_source="not in Nikolov et al.; the optic nerve's value",
    ),
    Organ(
        name="Bone_Mandible",
        snomed_code="91609006",
        snomed_meaning="Bone structure of mandible",
        colour_rgb=(255, 90, 70),
        tolerance_mm=1.01,
    ),
    *_pair(
        "OpticNrv",
        "18234004",
        "Optic nerve structure",
        colours_rgb=((255, 180, 0), (190, 255, 60)),
        tolerance_mm=2.50,
    ),
    *_pair(
        "Parotid",
        "45289007",
        "Parotid gland structure",
        colours_rgb=((70, 210, 90), (40, 210, 220)),
        tolerance_mm=2.85,
    ),
    *_pair(
        "Glnd_Submand",
        "54019009",
        "Submandibular gland structure",
        colours_rgb=((235, 80, 210), (160, 110, 255)),
        tolerance_mm=2.02,
    ),
    Organ(
        name="SpinalCord",
        snomed_code="2748008",
        snomed_meaning="Spinal cord structure",
        colour_rgb=(244, 214, 49),
        tolerance_mm=2.93,
    ),
    Organ(
        name="Esophagus",
        snomed_code="32849002",
        snomed_meaning="Esophageal structure",
        colour_rgb=(230, 140, 60),
        tolerance_mm=3.00,
        tolerance_source="not in Nikolov et al.; one slice of a 3 mm planning CT",
    ),
    Organ(
        name="Larynx",
        snomed_code="4596009",
        snomed_meaning="Laryngeal structure",
        colour_rgb=(200, 150, 255),
        tolerance_mm=3.00,
        tolerance_source="not in Nikolov et al.; one slice of a 3 mm planning CT",
    ),
    Organ(
        name="Brain",
        snomed_code="12738006",
        snomed_meaning="Brain structure",
        colour_rgb=(250, 200, 190),
        tolerance_mm=1.01,
    ),
    *_pair(
        "Cochlea",
        "80169004",
        "Cochlear structure",
        colours_rgb=((120, 200, 255), (0, 130, 200)),
        tolerance_mm=1.25,
    ),
    *_pair(
        "Glnd_Lacrimal",
        "13561001",
        "Lacrimal gland structure",
        colours_rgb=((255, 220, 120), (200, 170, 60)),
        tolerance_mm=2.50,
    ),
    *_pair(
        "Lens",
        "78076003",
        "Structure of lens of eye",
        colours_rgb=((180, 255, 210), (100, 220, 160)),
        tolerance_mm=0.98,
    ),
    *_pair(
        "Lung",
        "39607008",
        "Lung structure",
        colours_rgb=((170, 190, 220), (130, 150, 190)),
        tolerance_mm=2.42,
    ),
    *_pair(
        "Eye",
        "81745001",
        "Structure of eye proper",
        colours_rgb=((240, 240, 240), (190, 190, 255)),
        tolerance_mm=1.65,
    ),
    Organ(
        name="SpinalCanal",
        snomed_code="61853006",
        snomed_meaning="Spinal canal structure",
        colour_rgb=(190, 120, 90),
        tolerance_mm=1.17,
    ),
)

ORGANS: Mapping[str, Organ] = MappingProxyType({organ.name: organ for organ in _ALL})
"""TG-263 name -> organ."""

PLANNING_ORDER = (
    *("Brain", "Brainstem", "SpinalCord", "SpinalCanal", "OpticChiasm", "OpticNrv_L", "OpticNrv_R"),
    *("Eye_L", "Eye_R", "Lens_L", "Lens_R", "Glnd_Lacrimal_L", "Glnd_Lacrimal_R"),
    *("Cochlea_L", "Cochlea_R", "Parotid_L", "Parotid_R", "Glnd_Submand_L", "Glnd_Submand_R"),
    *("Bone_Mandible", "Larynx", "Esophagus", "Lung_L", "Lung_R"),
)
"""Every organ once, in the order of lists for planning: central nervous system, eyes, ears, then downwards."""

ORGAN_SETS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        # The nine organs of PDDCA 1.4.1, in the order of the paper's table.
        "pddca": MappingProxyType(
            {
                "Brainstem": 1,
                "OpticChiasm": 2,
                "Bone_Mandible": 3,
                "OpticNrv_L": 4,
                "OpticNrv_R": 5,
                "Parotid_L": 6,
                "Parotid_R": 7,
                "Glnd_Submand_L": 8,
                "Glnd_Submand_R": 9,
            }
        ),
        # The seven organs of the OpenKBP challenge, with the challenge's own label values.
        "openkbp": MappingProxyType(
            {
                "Brainstem": 1,
                "SpinalCord": 2,
                "Parotid_R": 3,
                "Parotid_L": 4,
                "Esophagus": 5,
                "Larynx": 6,
                "Bone_Mandible": 7,
            }
        ),
    }
)
"""Name of the set -> TG-263 name -> label value. New organs get new values; existing values never change."""


def organ_set(name: str) -> Mapping[str, int]:
    """Return the set called `name`: TG-263 name -> label value, 1 to the number of organs.

    Raises:
        ConfigError: If there is no such set.
    """
    if name not in ORGAN_SETS:
        raise ConfigError(f"unknown organ set {name!r}; known sets: {', '.join(ORGAN_SETS)}")
    return ORGAN_SETS[name]


def mirror_values(labels: Mapping[str, int]) -> list[int]:
    """Return, for each value 0..K-1, the value it has in a left-right mirrored patient.

    An organ whose counterpart is not in `labels` keeps its value.
    """
    swapped = list(range(max(labels.values()) + 1))
    for name, value in labels.items():
        swapped[value] = labels.get(ORGANS[name].mirror, value)
    return swapped


def is_mirrorable(labels: Mapping[str, int]) -> bool:
    """Return whether every organ of one side has its counterpart in `labels`.

    Otherwise a network applied to a mirrored patient would contour the counterpart in its place.
    """
    return all(ORGANS[name].mirror in labels for name in labels)
