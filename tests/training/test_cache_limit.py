import os
from pathlib import Path

import numpy as np
import pytest

from lib.inference.preprocessing import Pipeline
from lib.training.cache_limit import limit_cache
from lib.training.cases import Case, cache_name, prepare_cases
from tests.tiny import TINY

SIZE = 1000


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a cache of three prepared cases and a stored score, `a` used first and `score` last."""
    for number, name in enumerate(("a", "b", "c", "scores/score.json")):
        path = tmp_path / name
        if name.startswith("scores"):
            path.parent.mkdir()
            path.write_bytes(bytes(SIZE))
        else:
            path.mkdir()
            (path / "hu.npy").write_bytes(bytes(SIZE - 100))
            (path / "label.npy").write_bytes(bytes(100))
        os.utime(path, (number, number))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_entries_used_longest_ago_are_removed_until_the_rest_fits(cache: Path) -> None:
    assert limit_cache(cache, 4 * SIZE, in_use=()) == 0
    assert limit_cache(cache, 2 * SIZE + 1, in_use=()) == 2
    assert names(cache) == ["c", "scores"]
    assert limit_cache(cache, 0, in_use=()) == 2
    assert names(cache) == ["scores"]
    assert names(cache / "scores") == []


def test_entries_in_use_stay_whatever_the_limit(cache: Path) -> None:
    assert limit_cache(cache, 0, in_use={"a"}) == 3
    assert names(cache) == ["a", "scores"]
    assert names(cache / "a") == ["hu.npy", "label.npy"]


def test_a_missing_cache_is_within_its_limit(tmp_path: Path) -> None:
    assert limit_cache(tmp_path / "none", 0, in_use=()) == 0


def test_a_case_that_is_read_counts_as_used(cases: list[Case], tmp_path: Path) -> None:
    prepared = prepare_cases(cases[:2], Pipeline(TINY), tmp_path)
    first, second = (cache_name(case.digest, TINY) for case in prepared)
    assert sorted((first, second)) == names(tmp_path)
    os.utime(tmp_path / first, (1, 1))
    os.utime(tmp_path / second, (2, 2))
    prepare_cases(cases[:1], Pipeline(TINY), tmp_path)
    size = sum(file.stat().st_size for file in (tmp_path / first).iterdir())
    limit_cache(tmp_path, size, in_use=())
    assert names(tmp_path) == [first]


def test_a_case_whose_removal_was_interrupted_is_prepared_again(
    cases: list[Case], tmp_path: Path
) -> None:
    (before,) = prepare_cases(cases[:1], Pipeline(TINY), tmp_path)
    # The file that makes the entry valid is removed first.
    (tmp_path / cache_name(before.digest, TINY) / "label.npy").unlink()
    (after,) = prepare_cases(cases[:1], Pipeline(TINY), tmp_path)
    np.testing.assert_array_equal(before.hu, after.hu)
    np.testing.assert_array_equal(before.label, after.label)
