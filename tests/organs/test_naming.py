import pytest

from lib.organs.naming import tg263_name
from lib.organs.table import ORGANS


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
        ("LTParotid", "Parotid_L"),
        ("PAROTIDL", "Parotid_L"),
        ("rtparotid", "Parotid_R"),
        ("Parotid (L)", "Parotid_L"),
        ("Glnd_Parotid_L", "Parotid_L"),
        ("Cord.", "SpinalCord"),
        # the reverse order of TG-263
        ("L_Submand_Glnd", "Glnd_Submand_L"),
        ("R_Lacrimal_Glnd", "Glnd_Lacrimal_R"),
        ("Mandible_Bone", "Bone_Mandible"),
        # other forms of the same characters: no-break space, hyphens, full-width letters
        ("spinal\u00a0cord", "SpinalCord"),
        ("Spinal\u2010Cord", "SpinalCord"),
        ("Brain\u2013Stem", "Brainstem"),
        ("\uff30\uff41\uff52\uff4f\uff54\uff49\uff44\uff3f\uff2c", "Parotid_L"),
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


@pytest.mark.parametrize(
    "spelling",
    [
        # with a word in another script: "expanded", "not", "upper part", "without", "left of"
        "SpinalCord\u5916\u6269", "\u975elarynx", "Brainstem\u4e0a\u90e8", "\u0431\u0435\u0437 Larynx",
        "\u5de6 Parotid", "SpinalCord \ubc94\uc704", "Larynx\u05d0",
        # with a letter that looks like another one, or carries a mark of its own
        "P\u0430rotid_L", "L\u03b1rynx", "Brainst\u00e9m", "Brainstem\u0301", "PAROT\u0130D_L",
        # with an unknown word, a number or a mark
        "Parotid_L_old", "not larynx", "Parotid_L copy", "SpinalCord\u00b2", "Parotid \u217c", "Larynx\u2122",
        "Parotid_L~", "Parotid_L?", "Cord+", "SpinalCord^x", "Parotid_L/R", "Larynx&Esophagus", "Larynx\u200b",
        "Larynx\x00", "Cord\u2212", "Brainstem=", "Larynx!", "SpinalCord\U0001f600",
        # structures of the optimisation by TG-263
        "_Parotid_L", "zParotid_L",
    ],
)  # fmt: skip
def test_a_name_with_a_part_that_is_not_understood_is_no_organ(spelling: str) -> None:
    assert tg263_name(spelling) is None


@pytest.mark.parametrize("name", sorted(ORGANS))
@pytest.mark.parametrize("letter", ["\u5916", "\u0436", "\u05d0", "q", "5", "~", "\u0303"])
def test_no_letter_may_be_added_to_a_name(name: str, letter: str) -> None:
    for spelling in (name + letter, letter + name, name[:3] + letter + name[3:]):
        assert tg263_name(spelling) is None
