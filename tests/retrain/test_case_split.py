from lib.retrain.case_set_records import REFEREE, TRAIN
from lib.retrain.case_split import CaseHistory, choose_set
from lib.training.cases import is_held_out

ALL = frozenset({"Brainstem", "Parotid_L", "Parotid_R"})


def place(
    cases: dict[str, frozenset[str]], trained_on: frozenset[str] = frozenset()
) -> dict[str, CaseHistory]:
    """Put cases into sets one after another."""
    known: dict[str, CaseHistory] = {}
    for image_id, organs in cases.items():
        chosen, _ = choose_set(image_id, organs, known, trained_on=trained_on)
        known[image_id] = CaseHistory(chosen, organs)
    return known


def judges(known: dict[str, CaseHistory]) -> list[str]:
    return [image_id for image_id, case in known.items() if case.set == REFEREE]


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
    assert choose_set("a", ALL, {}, is_doubted=True) == (TRAIN, "its first label looked wrong")


def test_the_reason_is_said() -> None:
    known = {"a": CaseHistory(REFEREE, ALL), "b": CaseHistory(REFEREE, ALL)}
    assert choose_set("c", ALL, {}) == (REFEREE, "the first 2 cases judge")
    assert choose_set("c", ALL, known)[1] == "by the hash of its id"
    assert choose_set("c", ALL, {}, trained_on={"c"}) == (
        TRAIN,
        "a model has seen it before",
    )
