from collections.abc import Mapping, Set

from lib.state.case_sets import CaseSets
from lib.state.database import Database

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
