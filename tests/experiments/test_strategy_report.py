import base64
import csv
import re
from pathlib import Path

import pytest

from lib.experiments.strategy_ranking import Curve, compare_pairs, conclusions, strategy_ranks
from lib.experiments.strategy_report import write_report
from tests.experiments.strategy_rounds import make_curve, make_protocol

LEVEL = (0.3, 0.4, 0.5)


def three(strategy: str, *gains: float) -> list[Curve]:
    return [make_curve(strategy, seed, LEVEL, gain=gain) for seed, gain in enumerate(gains)]


def text_of(*groups: list[Curve]) -> str:
    every = [curve for curves in groups for curve in curves]
    return " ".join(conclusions(strategy_ranks(every), compare_pairs(every)))


BASE = three("random", 0.0, 0.0, 0.0)
CLEAR = (0.020, 0.021, 0.022)


def test_no_difference_is_reported_as_such() -> None:
    text = text_of(BASE, three("random_foreground", 0, 0, 0), three("entropy", 0, 0, 0))
    assert "No strategy is significantly better than `random`." in text
    assert "No strategy is significantly better than `random_foreground`." in text
    assert "No significant difference to `random`: `random_foreground` (+0.000 AUBC" in text
    assert "Significantly better" not in text


def test_a_clear_winner_is_named_for_each_baseline() -> None:
    foreground = three("random_foreground", 0.04, 0.041, 0.042)
    text = text_of(BASE, foreground, three("entropy", *CLEAR))
    assert "Significantly better than `random`: `random_foreground` (+0.050" in text
    assert "`entropy` (+0.025 AUBC, p 0.0059, ahead in 3 of 3 seeds)" in text
    assert "No strategy is significantly better than `random_foreground`." in text
    assert "Significantly worse than `random_foreground`: `entropy` (-0.024" in text


def test_a_gain_in_one_seed_alone_is_reported_as_such() -> None:
    text = text_of(BASE, three("lucky", 0.09, -0.001, 0.002))
    assert "No strategy is significantly better than `random`." in text
    assert (
        "Better than `random` on these test cases, but not beyond the variation between seeds"
        in text
    )
    assert "Another choice of initial labels and weights could reverse this." in text


def test_a_loss_in_one_seed_alone_too() -> None:
    text = text_of(BASE, three("unlucky", -0.09, 0.001, -0.002))
    assert (
        "Worse than `random` on these test cases, but not beyond the variation between seeds"
        in text
    )


def test_flat_curves_allow_no_conclusion() -> None:
    def noisy(strategy: str) -> list[Curve]:
        return [
            make_curve(strategy, 0, (0.5, 0.4, 0.52)),
            make_curve(strategy, 1, (0.5, 0.6, 0.49)),
            make_curve(strategy, 2, (0.5, 0.5, 0.51)),
        ]

    text = text_of(noisy("random"), noisy("entropy"))
    assert "mean DSC over all strategies changed by +0.007" in text
    assert "cannot tell good strategies from bad ones" in text


def test_the_gain_by_more_labels_is_reported() -> None:
    text = text_of(BASE, three("entropy", *CLEAR))
    assert "changed by +0.215 (95 % confidence interval over seeds" in text
    assert "cannot tell good strategies" not in text


def test_one_seed_allows_no_winner() -> None:
    text = text_of(three("random", 0.0), three("entropy", 0.05))
    assert text.startswith(
        "Only one seed was run: differences cannot be distinguished from random effects"
    )
    assert "No strategy is significantly better than `random`." in text


def test_a_missing_baseline_is_reported() -> None:
    text = text_of(BASE, three("entropy", *CLEAR))
    assert "The baseline `random_foreground` was not included." in text


def test_one_strategy_alone_is_not_compared() -> None:
    assert text_of(BASE) == "`random` is the only strategy: there is nothing to compare it with."


def test_report_holds_the_numbers(tmp_path: Path) -> None:
    curves = [*BASE, *three("entropy", *CLEAR)]
    summary = write_report(
        tmp_path,
        make_protocol("random", "entropy"),
        curves,
        conditions=["Data: <made up>."],
        command="python -m apps.simulate_active_learning --data 'a b'",
    )
    ranks = {rank.strategy: rank for rank in strategy_ranks(curves)}
    page = (tmp_path / "report.md").read_text()
    html = (tmp_path / "report.html").read_text()
    assert summary[0] in page
    assert "- Data: <made up>." in page
    assert "| entropy | **0.487 ± 0.001** |" in page
    # 2.5 / 6 and 0.045 of the cases; the gain of the middle seed, as in the test of the pairs.
    assert ranks["entropy"].aubc[1] == pytest.approx(2.5 / 6 + 0.045 + 0.021 * 1.45 * 5 / 6)
    assert "<td><b>0.487 ± 0.001</b></td>" in html
    assert "Data: &lt;made up&gt;." in html
    with (tmp_path / "standings.csv").open(newline="") as file:
        rows = {row["strategy"]: row for row in csv.DictReader(file)}
    assert float(rows["random"]["aubc"]) == pytest.approx(2.5 / 6 + 0.045, abs=1e-5)
    assert rows["random"]["voxels"] == "800"
    with (tmp_path / "pairs.csv").open(newline="") as file:
        (pair,) = csv.DictReader(file)
    assert (pair["first"], pair["second"], pair["verdict"]) == ("random", "entropy", "loses")
    with (tmp_path / "rounds.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 3 * 3
    png = (tmp_path / "learning-curves.png").read_bytes()
    inside = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert inside is not None
    assert base64.b64decode(inside[1]) == png
    assert "http" not in html.replace("https://", "http").split("<body>")[0]


def test_the_report_of_an_unfinished_simulation_says_what_is_missing(tmp_path: Path) -> None:
    curves = [make_curve(name, 0, LEVEL) for name in ("random", "entropy")]
    summary = write_report(
        tmp_path, make_protocol("random", "entropy"), curves, conditions=[], command="c"
    )
    assert (
        summary[0] == "Incomplete: all rounds are finished for 1 of 3 seeds; only these are shown."
    )
