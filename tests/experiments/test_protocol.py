from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib.errors import ConfigError, StateError
from lib.experiments.label_cost import Cost, cost_of, total
from lib.experiments.presets import PRESETS, Overrides, smaller
from lib.experiments.protocol import (
    derived_seed,
    divided,
    first_draw,
    read_ids,
    write_protocol,
)
from lib.experiments.round_records import START, RoundKey, places, read_round, write_round
from lib.recipes.schema import OPENKBP
from lib.training.cases import Case
from tests.experiments.strategy_rounds import make_protocol, make_round
from tests.phantoms import make_ct

CASES = [Case(f"case_{n}", Path(f"{n}.nii.gz"), Path(f"label_{n}.nii.gz")) for n in range(12)]


def ids(cases: list[Case]) -> list[str]:
    return [case.image_id for case in cases]


def test_pool_and_test_follow_from_the_ids_alone() -> None:
    pool, test = divided(CASES, pool=6, test=3)
    turned = divided(CASES[::-1], pool=6, test=3)
    assert (ids(pool), ids(test)) == (ids(turned[0]), ids(turned[1]))
    assert (len(pool), len(test)) == (6, 3)
    assert not set(ids(pool)) & set(ids(test))
    # A larger pool changes nothing of the test, and takes nobody out of the pool.
    larger = divided(CASES, pool=8, test=3)
    assert ids(larger[1]) == ids(test)
    assert set(ids(larger[0])) > set(ids(pool))


def test_listed_cases_are_taken_as_they_are() -> None:
    pool, test = divided(CASES, pool=3, test=99, listed_test=["case_1", "case_0"])
    assert ids(test) == ["case_0", "case_1"]
    assert len(pool) == 3
    pool, test = divided(CASES, pool=99, test=2, listed_pool=["case_5"])
    assert ids(pool) == ["case_5"]
    assert "case_5" not in ids(test)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pool": 10, "test": 3}, "pool: 10 cases are asked for, 9 of 12 are left"),
        ({"pool": 1, "test": 13}, "test: 13 cases are asked for, 12 of 12 are left"),
        ({"pool": 1, "test": 1, "listed_test": ["case_99"]}, "no labelled case is called case_99"),
    ],
)
def test_too_few_cases_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divided(CASES, **asked)


def test_a_list_of_ids_is_read(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text("# judges\npt_1\n\n pt_2  # second\n")
    assert read_ids(path) == ["pt_1", "pt_2"]
    path.write_text("pt_1\npt_1\n")
    with pytest.raises(ConfigError, match="each once"):
        read_ids(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_ids(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategies": ()}, "strategies: name one or more"),
        ({"strategies": ("random", "random")}, "each once"),
        ({"seeds": 0}, "at least 1 is needed"),
        ({"budgets": (4,)}, "two or more rising"),
        ({"budgets": (4, 4)}, "two or more rising"),
        ({"budgets": (0, 4)}, "two or more rising"),
        ({"budgets": (4, 11)}, "11 labels are more than the pool of 10"),
        ({"test": {}}, "one or more cases are needed"),
        ({"test": {"p1": "0"}}, "1 of them in both"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(make_protocol("random"), **changes)


def test_a_folder_of_other_options_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    protocol = make_protocol("random", "entropy")
    write_protocol(tmp_path, protocol)
    write_protocol(tmp_path, protocol)
    with pytest.raises(ConfigError, match=r"budgets: there \[2, 4, 8\], asked for \[2, 4\]"):
        write_protocol(tmp_path, replace(protocol, budgets=(2, 4)))
    wide = replace(OPENKBP, name="for a test", network=replace(OPENKBP.network, width=9))
    with pytest.raises(ConfigError, match="recipe: network width there 8, asked for 9"):
        write_protocol(tmp_path, replace(protocol, recipe=wide))
    with pytest.raises(ConfigError, match='pool: p3 there "0", asked for "9"'):
        write_protocol(tmp_path, replace(protocol, pool={**protocol.pool, "p3": "9"}))
    write_protocol(tmp_path, protocol)


def test_a_damaged_protocol_is_named(tmp_path: Path) -> None:
    (tmp_path / "protocol.json").write_text("[]")
    with pytest.raises(StateError, match="cannot be read"):
        write_protocol(tmp_path, make_protocol("random"))


def test_the_first_draw_is_of_the_seed_alone() -> None:
    pool = [f"p{n}" for n in range(30)]
    drawn = first_draw(pool, 6, seed=1)
    assert drawn == first_draw(pool[::-1], 6, seed=1)
    assert len(set(drawn)) == 6
    assert set(drawn) != set(first_draw(pool, 6, seed=2))


def test_derived_seeds_differ() -> None:
    every = {derived_seed(s, r, p) for s in range(5) for r in range(5) for p in range(20)}
    assert len(every) == 500


def test_rounds_follow_the_shared_start_seed_by_seed() -> None:
    every = places(make_protocol("random", "entropy", seeds=2))
    assert len(every) == 2 * (1 + 2 * 2)
    assert every[:3] == [RoundKey(0, 0, START), RoundKey(0, 1, "random"), RoundKey(0, 1, "entropy")]
    assert RoundKey(1, 1, "entropy").before() == RoundKey(1, 0, START)
    assert RoundKey(1, 2, "entropy").before() == RoundKey(1, 1, "entropy")
    assert RoundKey(1, 0, START).before() is None


def test_a_round_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = make_round(RoundKey(1, 2, "entropy"), {"a": {"Larynx": 0.1 + 0.2}}, cases=3, voxels=7)
    write_round(tmp_path, made)
    assert read_round(tmp_path, made.place) == made
    assert read_round(tmp_path, RoundKey(1, 1, "entropy")) is None
    (tmp_path / "rounds" / f"{made.place.name}.json").write_text("{}")
    with pytest.raises(StateError, match="remove it, and it is computed again"):
        read_round(tmp_path, made.place)


def test_cost_by_hand() -> None:
    ct = make_ct()
    label = (0 * ct.array_hu).astype("uint8")
    label[2:4, 2:5, 1] = 3
    label[2:4, 2, 6] = 1
    one = cost_of(label, ct.grid)
    assert one == Cost(cases=1, slices=2, voxels=8)
    assert total([one, one]) == Cost(cases=2, slices=4, voxels=16)


@pytest.mark.parametrize(("steps", "epochs"), [(600, 6), (250, 5), (101, 1), (7, 1), (100, 1)])
def test_steps_are_the_schedules(steps: int, epochs: int) -> None:
    schedule = smaller(OPENKBP, Overrides(steps=steps)).schedule
    assert schedule.epochs * schedule.steps_per_epoch == steps
    assert schedule.epochs == epochs


def test_flags_go_before_the_preset() -> None:
    recipe = smaller(OPENKBP, Overrides(width=6).over(PRESETS["small"]))
    assert recipe.network.width == 6
    assert recipe.spacing_mm == PRESETS["small"].spacing_mm
    assert recipe.spacing_tolerance == 0
    assert smaller(OPENKBP, PRESETS["full"]) == OPENKBP
    with pytest.raises(ConfigError, match="at least 1 step"):
        smaller(OPENKBP, Overrides(steps=0))
