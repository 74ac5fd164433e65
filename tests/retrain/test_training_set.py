"""Assignment of each labelled case to training or evaluation."""

from collections.abc import Mapping
from pathlib import Path

from lib.retrain.training_set import (
    EVALUATION,
    TRAIN,
    CaseSets,
    choose_set,
    evaluation_cases_of,
)
from lib.storage.database import FILE, Database, state_folder
from lib.training.cases import Case, is_held_out, split

ALL = frozenset({"Brainstem", "Parotid_L", "Parotid_R"})


def assign_all(
    organs: dict[str, frozenset[str]], trained_on: frozenset[str] = frozenset()
) -> dict[str, str]:
    """Assign the cases to sets one after another."""
    sets: dict[str, str] = {}
    for image_id in organs:
        sets[image_id], _ = choose_set(image_id, sets, organs, trained_on=trained_on)
    return sets


def evaluation_cases(sets: dict[str, str]) -> list[str]:
    return [image_id for image_id, name in sets.items() if name == EVALUATION]


def test_the_first_two_cases_are_evaluation_cases() -> None:
    assert evaluation_cases(assign_all(dict.fromkeys(("a", "b", "c"), ALL)))[:2] == ["a", "b"]


def test_about_one_case_in_five_is_an_evaluation_case() -> None:
    sets = assign_all({f"case_{n}": ALL for n in range(400)})
    assert 70 <= len(evaluation_cases(sets)) <= 83


def test_the_hash_of_the_id_decides_between_the_limits() -> None:
    # After the first two cases, and below the limit, only the hash decides.
    sets = assign_all({f"case_{n}": ALL for n in range(25)})
    later = [name for name in list(sets)[2:] if is_held_out(name)]
    assert evaluation_cases(sets)[2:] == later


def test_an_organ_without_an_evaluation_case_gets_one() -> None:
    with_chiasm = ALL | {"OpticChiasm"}
    names = [name for name in (f"case_{n}" for n in range(100)) if not is_held_out(name)][:8]
    sets = assign_all({name: ALL if n < 5 else with_chiasm for n, name in enumerate(names)})
    # The first two cases with the organ are training cases, the third is an evaluation case.
    assert evaluation_cases(sets) == [names[0], names[1], names[7]]


def test_a_case_that_a_model_was_trained_on_is_never_an_evaluation_case() -> None:
    names = [f"case_{n}" for n in range(50)]
    sets = assign_all(dict.fromkeys(names, ALL), trained_on=frozenset(names[:30]))
    assert not set(evaluation_cases(sets)) & set(names[:30])
    assert evaluation_cases(sets)[:2] == names[30:32]


def test_a_label_with_plausibility_warnings_is_never_for_evaluation() -> None:
    assert choose_set("a", {}, {"a": ALL}, is_doubted=True) == (
        TRAIN,
        "its first label has plausibility warnings",
    )


def test_the_reason_is_returned() -> None:
    sets, organs = {"a": EVALUATION, "b": EVALUATION}, dict.fromkeys("abc", ALL)
    assert choose_set("c", {}, organs) == (EVALUATION, "the first 2 cases are evaluation cases")
    assert choose_set("c", sets, organs)[1] == "by the hash of its id"
    assert choose_set("c", {}, organs, trained_on={"c"}) == (
        TRAIN,
        "a model was trained on it before",
    )


CASES = [f"case_{n}" for n in range(4)]


def alternate(_image_id: str, sets: Mapping[str, str]) -> tuple[str, str]:
    return ("referee" if len(sets) % 2 else "train"), "alternating"


def never(_image_id: str, _sets: Mapping[str, str]) -> tuple[str, str]:
    raise AssertionError("a case was decided twice")


def test_a_case_stays_in_its_set(database: Database) -> None:
    first = CaseSets(database).assign(CASES, alternate)
    assert list(first.values()) == ["train", "referee", "train", "referee"]
    assert CaseSets(database).assign(CASES, never) == first
    assert CaseSets(database).all() == first


def test_the_choice_for_a_new_case_sees_the_sets_of_the_others(database: Database) -> None:
    CaseSets(database).assign(CASES[:3], alternate)
    assert CaseSets(database).assign(CASES, alternate)["case_3"] == "referee"


def test_a_training_by_hand_leaves_out_the_servers_evaluation_cases(tmp_path: Path) -> None:
    cases = [Case(name, tmp_path / name, tmp_path / name) for name in CASES]
    assert evaluation_cases_of(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []
    database = Database(state_folder(str(tmp_path), tmp_path) / FILE)
    CaseSets(database).assign(CASES, alternate)
    database.close()
    train, held_out = split(cases, evaluation_ids=evaluation_cases_of(tmp_path))
    assert [case.image_id for case in train] == ["case_0", "case_2"]
    assert [case.image_id for case in held_out] == ["case_1", "case_3"]
