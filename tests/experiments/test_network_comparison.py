from pathlib import Path

import pytest

from lib.errors import ConfigError
from lib.experiments.network_comparison import network_ranks, write_comparison
from tests.experiments.network_results import ORGANS, all_at, make_result


def test_means_are_over_organs_and_then_over_seeds() -> None:
    first = make_result(
        "organnet25d", 0, {("a", "Brainstem"): 0.8, ("b", "Brainstem"): 0.6, ("a", "Larynx"): 0.5}
    )
    second = make_result(
        "organnet25d", 1, {("a", "Brainstem"): 0.9, ("b", "Brainstem"): 0.9, ("a", "Larynx"): 0.7}
    )
    (rank,) = network_ranks([first, second], ORGANS)
    assert first.mean("dsc", ORGANS) == pytest.approx((0.7 + 0.5) / 2)
    assert rank.dsc == pytest.approx((0.6 + 0.8) / 2)
    assert rank.dsc_sd == pytest.approx(0.2 / 2**0.5)
    assert rank.organ_dsc == pytest.approx({"Brainstem": 0.8, "Larynx": 0.6})
    assert rank.difference is None


def test_a_missed_organ_counts_as_0_and_has_no_distance() -> None:
    result = make_result("unet", 0, {("a", "Brainstem"): 0.8, ("b", "Brainstem"): 0.0})
    (rank,) = network_ranks([result], ORGANS[:1])
    assert rank.dsc == pytest.approx(0.4)
    assert rank.hd95_mm == pytest.approx(5.0)
    assert rank.missed == 1


def test_a_steady_difference_is_significant_and_none_is_not() -> None:
    better = {key: value + 0.001 * index for index, (key, value) in enumerate(all_at(0.8).items())}
    ranks = network_ranks(
        [
            make_result("organnet25d", 0, all_at(0.7)),
            make_result("unet", 0, better),
            make_result("vnet", 0, all_at(0.7)),
        ],
        ORGANS,
    )
    unet, vnet = ranks[1].difference, ranks[2].difference
    assert unet is not None
    assert vnet is not None
    assert unet.low <= unet.mean <= unet.high
    assert unet.mean == pytest.approx(0.107, abs=0.002)
    # 8 cases, all of one sign: 2 / 2**8 is the least that the exact test gives, times 2 for Holm.
    assert unet.p == pytest.approx(2 * 2 / 2**8)
    assert (vnet.mean, vnet.p) == (0.0, 1.0)


def test_runs_evaluated_on_other_cases_are_not_compared() -> None:
    with pytest.raises(ConfigError, match="evaluated on different contours"):
        network_ranks(
            [make_result("unet", 0, all_at(0.7)), make_result("vnet", 0, all_at(0.7, cases=5))],
            ORGANS,
        )


def test_one_network_under_two_recipes_is_named_by_the_recipe() -> None:
    results = [
        make_result("organnet25d", 0, all_at(0.7)),
        make_result("organnet25d", 0, all_at(0.7), recipe="mine"),
    ]
    assert [s.name for s in network_ranks(results, ORGANS)] == ["openkbp", "mine"]


def test_the_pages_name_the_conditions_and_failed_runs(tmp_path: Path) -> None:
    ranks = network_ranks([make_result("unet", 0, all_at(0.7))], ORGANS)
    failed = {"vnet-seed0": "exit code 1: error: no <file>"}
    write_comparison(tmp_path, ranks, ORGANS, conditions=["15 minutes each"], failed=failed)
    page = (tmp_path / "comparison.md").read_text()
    assert "- 15 minutes each" in page
    assert "| unet | 2.00 M | 1 | **0.700** | 0.700 | 0.700 |" in page
    assert "- vnet-seed0: exit code 1: error: no <file>" in page
    html = (tmp_path / "comparison.html").read_text()
    assert "<td>2.00 M</td><td>1</td><td><b>0.700</b></td><td>0.700</td>" in html
    assert "exit code 1: error: no &lt;file&gt;" in html


def test_the_files_are_written_with_every_row(tmp_path: Path) -> None:
    results = [make_result("unet", seed, all_at(0.7)) for seed in (0, 1)]
    write_comparison(tmp_path, network_ranks(results, ORGANS), ORGANS, conditions=[], failed={})
    lines = (tmp_path / "comparison.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(all_at(0.7))
    assert lines[1].startswith("unet,0,unet-openkbp-0,case_0,Brainstem,0.7,5,")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
