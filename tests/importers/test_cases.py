from pathlib import Path

import pytest

from lib.errors import ConfigError, LabelError
from lib.importers.cases import OrganNames, read_names
from tests.importers.sources import OPENKBP


def test_every_structure_name_is_classified() -> None:
    names = OrganNames(organ_set="openkbp", table={"ptv70": "ignore", "bs": "Brainstem"})
    classified = names.classify(["BS", "Chiasm", "PTV70", "Heart", "Lt Parotid"], "case7")
    assert classified.organs == {"BS": "Brainstem", "Lt Parotid": "Parotid_L"}
    assert classified.outside_set == ["Chiasm"]
    assert classified.ignored == ["PTV70"]
    assert classified.unmapped == ["Heart"]


@pytest.mark.parametrize(
    "name", ["Cord+5", "SpinalCord_PRV05", "SpinalCord~", "Parotid_L1", "zParotid_L", "Parotid_L!"]
)
def test_margins_parts_and_versions_are_not_mapped_to_the_organ(name: str) -> None:
    assert OPENKBP.classify([name], "case7").unmapped == [name]


def test_the_users_table_has_priority_and_ignores_case() -> None:
    names = OrganNames(organ_set="openkbp", table={"cord+5 mm": "SpinalCord", "cord": "ignore"})
    classified = names.classify(["CORD+5  mm", "Cord"], "case7")
    assert classified.organs == {"CORD+5  mm": "SpinalCord"}
    assert classified.ignored == ["Cord"]


def test_two_names_of_one_organ_are_refused() -> None:
    with pytest.raises(LabelError, match="case7: 'Cord' and 'SpinalCord' both mean SpinalCord"):
        OPENKBP.classify(["Cord", "SpinalCord"], "case7")


def test_a_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("Rt Par: Parotid_R\nPTV70: ignore\n70: ignore\n", encoding="utf-8")
    assert read_names(path) == {"rt par": "Parotid_R", "ptv70": "ignore", "70": "ignore"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Rt Par: RightParotid", "'Rt Par' means 'RightParotid'; 'ignore' or one of Brainstem"),
        ("- Parotid_R", "lines such as"),
        ("", "lines such as"),
        ("a: [", "cannot be read as YAML"),
        ("Cord: SpinalCord\ncord: ignore", "'cord' has two meanings"),
        ("Cord: [1]", r"'Cord' means \[1\]"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_names(path)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_names(tmp_path / "none.yaml")
