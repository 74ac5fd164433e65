import pytest

from lib.errors import ConfigError
from lib.organs.table import LATERALITY, ORGAN_SETS, ORGANS, mirror_values, organ_set


def test_names_follow_tg_263() -> None:
    names = list(ORGANS)
    assert all(len(name) <= 16 for name in names)
    assert len({name.lower() for name in names}) == len(names)
    assert all(part[0].isupper() for name in names for part in name.split("_") if part)


def test_side_codes_are_those_of_snomed_ct() -> None:
    assert LATERALITY == {"_L": ("7771000", "Left"), "_R": ("24028007", "Right")}


def test_label_values_never_change() -> None:
    # Checkpoints and stored labels contain these numbers: only append, never renumber.
    assert list(ORGAN_SETS["pddca"].items()) == [
        ("Brainstem", 1),
        ("OpticChiasm", 2),
        ("Bone_Mandible", 3),
        ("OpticNrv_L", 4),
        ("OpticNrv_R", 5),
        ("Parotid_L", 6),
        ("Parotid_R", 7),
        ("Glnd_Submand_L", 8),
        ("Glnd_Submand_R", 9),
    ]
    assert list(ORGAN_SETS["openkbp"].items()) == [
        ("Brainstem", 1),
        ("SpinalCord", 2),
        ("Parotid_R", 3),
        ("Parotid_L", 4),
        ("Esophagus", 5),
        ("Larynx", 6),
        ("Bone_Mandible", 7),
    ]


@pytest.mark.parametrize("name", sorted(ORGAN_SETS))
def test_a_set_names_known_organs_and_counts_from_1(name: str) -> None:
    labels = ORGAN_SETS[name]
    assert set(labels) <= set(ORGANS)
    assert sorted(labels.values()) == list(range(1, len(labels) + 1))


def test_mirroring_swaps_the_sides_and_mirroring_twice_changes_nothing() -> None:
    for organ in ORGANS.values():
        assert ORGANS[organ.mirror].mirror == organ.name
        assert (organ.mirror == organ.name) == (organ.side is None)
    assert mirror_values(ORGAN_SETS["openkbp"]) == [0, 1, 2, 4, 3, 5, 6, 7]
    assert mirror_values(ORGAN_SETS["pddca"]) == [0, 1, 2, 3, 5, 4, 7, 6, 9, 8]


def test_codes_and_colours_are_distinct() -> None:
    structures = {
        organ.snomed_code: organ.name.removesuffix(organ.side or "") for organ in ORGANS.values()
    }
    assert len(structures) == len(set(structures.values()))
    colours = [organ.colour_rgb for organ in ORGANS.values()]
    assert len(set(colours)) == len(colours)
    assert all(0 <= c <= 255 for colour in colours for c in colour)


def test_tolerances_are_millimetres_with_a_source() -> None:
    assert all(0.5 < organ.tolerance_mm < 5 and organ.tolerance_source for organ in ORGANS.values())


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown organ set 'liver'; known sets: pddca, openkbp"):
        organ_set("liver")
