import numpy as np
import pytest

from lib.errors import LabelError
from lib.imaging.quantities import LabelArray
from lib.organs.naming import tg263_name, to_organ_values
from lib.organs.table import ORGAN_SETS, ORGANS

LABELS = ORGAN_SETS["openkbp"]
BRAINSTEM, CORD, PAROTID_L = LABELS["Brainstem"], LABELS["SpinalCord"], LABELS["Parotid_L"]


@pytest.mark.parametrize("name", sorted(ORGANS))
def test_a_tg263_name_is_recognized_in_any_case(name: str) -> None:
    assert tg263_name(name) == tg263_name(name.lower()) == tg263_name(name.upper()) == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        # PDDCA
        ("BrainStem", "Brainstem"),
        ("Chiasm", "OpticChiasm"),
        ("Mandible", "Bone_Mandible"),
        ("OpticNerve_L", "OpticNrv_L"),
        ("Submandibular_R", "Glnd_Submand_R"),
        # OpenKBP
        ("RightParotid", "Parotid_R"),
        ("leftparotid", "Parotid_L"),
        # Nikolov et al.
        ("Optic-Nerve-Lt", "OpticNrv_L"),
        ("Submandibular-Rt", "Glnd_Submand_R"),
        ("Spinal-Cord", "SpinalCord"),
        ("Spinal-Canal", "SpinalCanal"),
        ("Orbit-Lt", "Eye_L"),
        ("Lacrimal-Rt", "Glnd_Lacrimal_R"),
        # TotalSegmentator, and common typed names
        ("parotid_gland_left", "Parotid_L"),
        ("left parotid gland", "Parotid_L"),
        ("PAROTID LT", "Parotid_L"),
        ("brain stem", "Brainstem"),
        ("Oesophagus", "Esophagus"),
    ],
)
def test_a_known_spelling_means_its_organ(spelling: str, name: str) -> None:
    assert tg263_name(spelling) == name


@pytest.mark.parametrize(
    "spelling",
    ["", "GTV", "Parotid", "Larynx_L", "Parotid_LR", "left parotid right", "SpinalCord_05",
     "SpinalCord_PRV", "Canal", "Eye", "notabrainstem"],
)  # fmt: skip
def test_an_unknown_spelling_is_not_guessed(spelling: str) -> None:
    assert tg263_name(spelling) is None


def holding(*values: int) -> LabelArray:
    return np.array(values, np.uint8).reshape(-1, 1, 1)


def named(**names: int) -> list[dict[str, object]]:
    return [{"name": name, "idx": index} for name, index in names.items()]


def remapped(array: LabelArray, info: list[dict[str, object]]) -> list[int]:
    return [int(v) for v in to_organ_values(array, info, LABELS, "pt_1").ravel()]


def test_without_names_the_values_are_those_of_the_organ_set() -> None:
    assert remapped(holding(0, 1, 4, 7), []) == [0, 1, 4, 7]


def test_without_names_a_strange_value_is_refused() -> None:
    with pytest.raises(LabelError, match=r"pt_1: the label holds the values \[9\], which name no"):
        remapped(holding(0, 1, 9), [])


def test_values_follow_idx_where_it_is_the_voxels_value() -> None:
    assert remapped(holding(0, 5, 9), named(LeftParotid=5, BrainStem=9)) == [
        0,
        PAROTID_L,
        BRAINSTEM,
    ]


def test_values_follow_the_lists_order_where_slicer_left_a_segment_out() -> None:
    # In `idx` Slicer counts the segment that it left out, but it numbers the segments of the file from 1.
    info = named(Parotid_L=2, Brainstem=3)
    assert remapped(holding(0, 1, 2), info) == [0, PAROTID_L, BRAINSTEM]


def test_two_differing_interpretations_of_the_values_are_refused() -> None:
    with pytest.raises(
        LabelError, match=r"can be read as \{2: 'Parotid_L'\} or, by the list's order"
    ):
        remapped(holding(0, 2), named(Parotid_L=2, Brainstem=3))


def test_two_interpretations_that_agree_on_the_present_values_are_accepted() -> None:
    assert remapped(holding(0, 1), named(Brainstem=1, SpinalCord=3)) == [0, BRAINSTEM]


def test_an_organ_outside_the_set_is_refused() -> None:
    with pytest.raises(
        LabelError, match=r"pt_1: 'GTV' is not an organ of this server; its organs are Br"
    ):
        remapped(holding(1, 2), named(Brainstem=1, GTV=2))


def test_an_empty_segment_may_have_any_name() -> None:
    assert remapped(holding(0, 1), named(Brainstem=1, GTV=2)) == [0, BRAINSTEM]


def test_a_value_without_a_name_is_refused() -> None:
    with pytest.raises(LabelError, match=r"holds the values \[1, 5\].*every value needs a name"):
        remapped(holding(1, 5), named(Brainstem=1, SpinalCord=2))


def test_two_segments_of_one_organ_are_refused() -> None:
    with pytest.raises(LabelError, match="two segments mean SpinalCord"):
        remapped(holding(1, 2), named(Cord=1, SpinalCord=2))


@pytest.mark.parametrize("entry", [{"name": "Brainstem"}, {"name": "Brainstem", "idx": "one"}])
def test_an_entry_without_a_number_is_refused(entry: dict[str, object]) -> None:
    with pytest.raises(LabelError, match="has no number 'idx'"):
        remapped(holding(1), [entry])


def test_an_empty_label_stays_empty() -> None:
    assert remapped(holding(0, 0), named(Brainstem=1, SpinalCord=2)) == [0, 0]
