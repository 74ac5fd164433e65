"""A short campaign of mutated files; `make fuzz REQUESTS=1000` runs a long one."""

import random
from pathlib import Path

import pytest

from tests.fuzz.campaign import Campaign
from tests.fuzz.direct import read_one, run_direct
from tests.fuzz.good_files import FORMATS, GoodFile, good_files
from tests.fuzz.mutations import mutated
from tests.fuzz.results import Results, quantile


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[GoodFile]]:
    return dict(good_files(tmp_path_factory.mktemp("good")))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("seg", "rtstruct")])
def test_the_valid_files_are_accepted(goods: dict[str, list[GoodFile]], name: str) -> None:
    assert [read_one(good, good.content) for good in goods[name]] == ["accepted"] * len(goods[name])


@pytest.mark.parametrize("name", FORMATS)
def test_mutations_are_changes_that_repeat_with_their_seed(
    goods: dict[str, list[GoodFile]], name: str
) -> None:
    for good in goods[name]:
        made = [mutated(good, random.Random(number)) for number in range(10)]  # noqa: S311 - no secret
        again = [mutated(good, random.Random(number)) for number in range(10)]  # noqa: S311 - no secret
        assert made == again
        assert sum(content != good.content for content in made) >= 5


def test_counts_of_several_runs_add_up(tmp_path: Path) -> None:
    for run in (1, 2):
        results = Results.load(tmp_path / "results.json")
        counts = results.of("nifti")
        counts.next_number += 10
        counts.ways["reader"] += 10
        results.info_ms[3] += 1
        results.save(tmp_path / "results.json")
        assert results.of("nifti").ways["reader"] == 10 * run
    assert (counts.next_number, results.info_ms) == (20, {3: 2})


def test_quantile_is_the_smallest_value_that_covers_its_share() -> None:
    counts = {1: 98, 5: 1, 900: 1}
    assert [quantile(counts, share) for share in (0.5, 0.98, 0.99, 1.0)] == [1, 1, 5, 900]


@pytest.mark.server
def test_no_mutated_file_harms_a_server(tmp_path: Path) -> None:
    campaign = Campaign(
        tmp_path / "fuzz", seed=1, info_limit_s=None, growth_limit_mib=None, with_pacs=False
    )
    campaign.run(12)
    assert campaign.results.is_clean, "\n".join(campaign.results.lines())


def test_no_mutated_file_is_unexpected_for_a_reader(tmp_path: Path) -> None:
    results = Results()
    run_direct(tmp_path, 1, dict.fromkeys(FORMATS, 12), results)
    assert results.is_clean, "\n".join(results.lines())
