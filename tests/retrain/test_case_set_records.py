from collections.abc import Mapping, Set
from pathlib import Path

from lib.retrain.case_set_records import CaseSets, judges_of
from lib.storage.database import FILE, Database, state_folder
from lib.training.cases import Case, split

CASES = [(f"case_{n}", frozenset({"Brainstem"})) for n in range(4)]


def alternate(_image_id: str, _organs: Set[str], sets: Mapping[str, str]) -> tuple[str, str]:
    return ("referee" if len(sets) % 2 else "train"), "by turns"


def never(_image_id: str, _organs: Set[str], _sets: Mapping[str, str]) -> tuple[str, str]:
    raise AssertionError("asked about a case that was decided")


def test_a_case_is_decided_once_for_ever(database: Database) -> None:
    first = CaseSets(database).assign(CASES, alternate)
    assert list(first.values()) == ["train", "referee", "train", "referee"]
    assert CaseSets(database).assign(CASES, never) == first
    assert CaseSets(database).all() == first


def test_a_new_case_is_decided_in_sight_of_the_others(database: Database) -> None:
    CaseSets(database).assign(CASES[:3], alternate)
    assert CaseSets(database).assign(CASES, alternate)["case_3"] == "referee"


def test_a_training_by_hand_leaves_out_what_judges_the_server_s_models(tmp_path: Path) -> None:
    cases = [Case(name, tmp_path / name, tmp_path / name) for name, _ in CASES]
    assert judges_of(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []
    database = Database(state_folder(str(tmp_path), tmp_path) / FILE)
    CaseSets(database).assign(CASES, alternate)
    database.close()
    train, held_out = split(cases, evaluation_ids=judges_of(tmp_path))
    assert [case.image_id for case in train] == ["case_0", "case_2"]
    assert [case.image_id for case in held_out] == ["case_1", "case_3"]
