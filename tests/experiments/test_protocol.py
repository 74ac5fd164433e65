from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib.errors import ConfigError, StateError
from lib.experiments.protocol import (
    PRESETS,
    Overrides,
    apply_overrides,
    derived_seed,
    initial_labels,
    read_ids,
    split_cases,
    write_protocol,
)
from lib.recipes.schema import OPENKBP
from lib.training.cases import Case
from tests.experiments.strategy_rounds import make_protocol

CASES = [Case(f"case_{n}", Path(f"{n}.nii.gz"), Path(f"label_{n}.nii.gz")) for n in range(12)]


def ids(cases: list[Case]) -> list[str]:
    return [case.image_id for case in cases]


def test_pool_and_test_follow_from_the_ids_alone() -> None:
    pool, test = split_cases(CASES, pool=6, test=3)
    reversed_order = split_cases(CASES[::-1], pool=6, test=3)
    assert (ids(pool), ids(test)) == (ids(reversed_order[0]), ids(reversed_order[1]))
    assert (len(pool), len(test)) == (6, 3)
    assert not set(ids(pool)) & set(ids(test))
    # A larger pool changes nothing of the test, and removes no case from the pool.
    larger = split_cases(CASES, pool=8, test=3)
    assert ids(larger[1]) == ids(test)
    assert set(ids(larger[0])) > set(ids(pool))


def test_listed_cases_are_taken_as_they_are() -> None:
    pool, test = split_cases(CASES, pool=3, test=99, listed_test=["case_1", "case_0"])
    assert ids(test) == ["case_0", "case_1"]
    assert len(pool) == 3
    pool, test = split_cases(CASES, pool=99, test=2, listed_pool=["case_5"])
    assert ids(pool) == ["case_5"]
    assert "case_5" not in ids(test)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pool": 10, "test": 3}, "pool: 10 cases requested, but only 9 of 12"),
        ({"pool": 1, "test": 13}, "test: 13 cases requested, but only 12 of 12"),
        ({"pool": 1, "test": 1, "listed_test": ["case_99"]}, "no labelled case is called case_99"),
    ],
)
def test_too_few_cases_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_cases(CASES, **asked)


def test_a_list_of_ids_is_read(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text("# test cases\npt_1\n\n pt_2  # second\n")
    assert read_ids(path) == ["pt_1", "pt_2"]
    path.write_text("pt_1\npt_1\n")
    with pytest.raises(ConfigError, match="one per line; found 2 ids, 1 different"):
        read_ids(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_ids(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategies": ()}, "strategies: one or more different names"),
        ({"strategies": ("random", "random")}, "different names expected"),
        ({"seeds": 0}, "seeds: at least 1 expected"),
        ({"budgets": (4,)}, "two or more increasing"),
        ({"budgets": (4, 4)}, "two or more increasing"),
        ({"budgets": (0, 4)}, "two or more increasing"),
        ({"budgets": (4, 11)}, "11 labels are more than the 10 cases of the pool"),
        ({"test": {}}, "one or more cases outside the pool expected"),
        ({"test": {"p1": "0"}}, "found 1, of which 1 are in the pool"),
    ],
)
def test_an_invalid_protocol_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(make_protocol("random"), **changes)


def test_a_folder_with_other_options_is_refused_with_the_differences(tmp_path: Path) -> None:
    protocol = make_protocol("random", "entropy")
    write_protocol(tmp_path, protocol)
    write_protocol(tmp_path, protocol)
    with pytest.raises(ConfigError, match=r"budgets: stored \[2, 4, 8\], requested \[2, 4\]"):
        write_protocol(tmp_path, replace(protocol, budgets=(2, 4)))
    wide = replace(OPENKBP, name="for a test", network=replace(OPENKBP.network, width=9))
    with pytest.raises(ConfigError, match="recipe: network width stored 8, requested 9"):
        write_protocol(tmp_path, replace(protocol, recipe=wide))
    with pytest.raises(ConfigError, match='pool: p3 stored "0", requested "9"'):
        write_protocol(tmp_path, replace(protocol, pool={**protocol.pool, "p3": "9"}))
    write_protocol(tmp_path, protocol)


def test_a_damaged_protocol_is_named(tmp_path: Path) -> None:
    (tmp_path / "protocol.json").write_text("[]")
    with pytest.raises(StateError, match="cannot be read"):
        write_protocol(tmp_path, make_protocol("random"))


def test_the_initial_labels_depend_on_the_seed_alone() -> None:
    pool = [f"p{n}" for n in range(30)]
    labels = initial_labels(pool, 6, seed=1)
    assert labels == initial_labels(pool[::-1], 6, seed=1)
    assert len(set(labels)) == 6
    assert set(labels) != set(initial_labels(pool, 6, seed=2))


def test_derived_seeds_differ() -> None:
    every = {derived_seed(s, r, p) for s in range(5) for r in range(5) for p in range(20)}
    assert len(every) == 500


@pytest.mark.parametrize(("steps", "epochs"), [(600, 6), (250, 5), (101, 1), (7, 1), (100, 1)])
def test_an_override_of_the_steps_sets_the_schedule(steps: int, epochs: int) -> None:
    schedule = apply_overrides(OPENKBP, Overrides(steps=steps)).schedule
    assert schedule.epochs * schedule.steps_per_epoch == steps
    assert schedule.epochs == epochs


def test_flags_take_precedence_over_the_preset() -> None:
    recipe = apply_overrides(OPENKBP, Overrides(width=6).with_defaults(PRESETS["small"]))
    assert recipe.network.width == 6
    assert recipe.spacing_mm == PRESETS["small"].spacing_mm
    assert recipe.spacing_tolerance == 0
    assert apply_overrides(OPENKBP, PRESETS["full"]) == OPENKBP
    with pytest.raises(ConfigError, match="at least 1 step"):
        apply_overrides(OPENKBP, Overrides(steps=0))
