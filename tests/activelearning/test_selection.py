from lib.activelearning.selection import first, random_choice


def test_first_is_the_first_in_the_alphabet() -> None:
    assert first(["b", "a", "c"]) == "a"


def test_nothing_is_chosen_where_all_are_labelled() -> None:
    assert first([]) is None
    assert random_choice([], 1) is None


def test_random_choice_is_that_of_its_seed_whatever_the_order() -> None:
    ids = [f"pt_{n}" for n in range(50)]
    assert random_choice(ids, 7) == random_choice(ids[::-1], 7)
    assert len({random_choice(ids, seed) for seed in range(40)}) > 10


def test_random_choice_without_a_seed_varies() -> None:
    ids = [f"pt_{n}" for n in range(50)]
    assert len({random_choice(ids, None) for _ in range(40)}) > 10
