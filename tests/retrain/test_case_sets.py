"""The set of each labelled case: training or evaluation."""

from collections.abc import Mapping, Set
from pathlib import Path

from lib.retrain.case_sets import (
    EVALUATION,
    TRAIN,
    AssignedCase,
    CaseSets,
    choose_set,
    evaluation_cases_of,
)
from lib.storage.database import FILE, Database, state_folder
from lib.training.cases import Case, is_held_out, split

ALL = frozenset({"Brainstem", "Parotid_L", "Parotid_R"})


def place(
    cases: dict[str, frozenset[str]], trained_on: frozenset[str] = frozenset()
) -> dict[str, AssignedCase]:
    """Put cases into sets one after another."""
    known: dict[str, AssignedCase] = {}
    for image_id, organs in cases.items():
        chosen, _ = choose_set(image_id, organs, known, trained_on=trained_on)
        known[image_id] = AssignedCase(chosen, organs)
    return known


def judges(known: dict[str, AssignedCase]) -> list[str]:
    return [image_id for image_id, case in known.items() if case.set == EVALUATION]


def test_the_first_two_cases_judge() -> None:
    assert judges(place(dict.fromkeys(("a", "b", "c"), ALL)))[:2] == ["a", "b"]


def test_about_one_in_five_judges() -> None:
    known = place({f"case_{n}": ALL for n in range(400)})
    assert 70 <= len(judges(known)) <= 83


def test_the_hash_decides_whatever_else_there_is() -> None:
    # Between the first two and the limit only the hash speaks.
    known = place({f"case_{n}": ALL for n in range(25)})
    later = [name for name in list(known)[2:] if is_held_out(name)]
    assert judges(known)[2:] == later


def test_an_organ_that_nobody_judges_gets_a_judge() -> None:
    with_chiasm = ALL | {"OpticChiasm"}
    names = [name for name in (f"case_{n}" for n in range(100)) if not is_held_out(name)][:8]
    known = place({name: ALL if n < 5 else with_chiasm for n, name in enumerate(names)})
    # The first two that have it are learned from, the third judges.
    assert judges(known) == [names[0], names[1], names[7]]


def test_a_case_that_a_model_has_seen_never_judges() -> None:
    names = [f"case_{n}" for n in range(50)]
    known = place(dict.fromkeys(names, ALL), trained_on=frozenset(names[:30]))
    assert not set(judges(known)) & set(names[:30])
    assert judges(known)[:2] == names[30:32]


def test_a_label_that_looks_wrong_never_judges() -> None:
    assert choose_set("a", ALL, {}, is_doubted=True) == (
        TRAIN,
        "its first label has plausibility warnings",
    )


def test_the_reason_is_said() -> None:
    known = {"a": AssignedCase(EVALUATION, ALL), "b": AssignedCase(EVALUATION, ALL)}
    assert choose_set("c", ALL, {}) == (EVALUATION, "the first 2 cases are evaluation cases")
    assert choose_set("c", ALL, known)[1] == "by the hash of its id"
    assert choose_set("c", ALL, {}, trained_on={"c"}) == (
        TRAIN,
        "a model was trained on it before",
    )


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
    assert evaluation_cases_of(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []
    database = Database(state_folder(str(tmp_path), tmp_path) / FILE)
    CaseSets(database).assign(CASES, alternate)
    database.close()
    train, held_out = split(cases, evaluation_ids=evaluation_cases_of(tmp_path))
    assert [case.image_id for case in train] == ["case_0", "case_2"]
    assert [case.image_id for case in held_out] == ["case_1", "case_3"]
