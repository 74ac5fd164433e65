"""The program itself: two networks, two seeds, trained in processes of their own."""

import csv
from pathlib import Path

import pytest
import yaml

from apps import train
from lib.training.cases import Case
from tests.tiny import TINY

pytestmark = pytest.mark.long


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def arguments(cases: list[Case], folder: Path, *more: str) -> list[str]:
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY.as_dict()), encoding="utf-8")
    return [
        *("--studies", str(cases[0].image.parent), "--recipe", str(recipe), "--device", "cpu"),
        *("--hold-out", "case_2", "--output", str(folder / "out"), "--epochs", "1", *more),
    ]


def test_networks_are_trained_evaluated_and_compared(
    cases: list[Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = ("--network", "organnet25d", "anatomynet")
    assert train.main(arguments(cases, tmp_path, *networks, "--seed", "0", "1", "--jobs", "2")) == 0
    output = tmp_path / "out"
    page = (output / "comparison.md").read_text()
    assert "| organnet25d | " in page
    assert "| anatomynet | " in page
    assert "2 training cases and 1 held-out test cases" in page
    rows = rows_of(output / "comparison.csv")
    assert {(row["network"], row["seed"]) for row in rows} == {
        (network, seed) for network in ("organnet25d", "anatomynet") for seed in "01"
    }
    assert {row["case"] for row in rows} == {"case_2"}
    assert (output / "comparison.png").exists()
    models = {path: path.stat().st_mtime_ns for path in output.glob("*/*.safetensors")}
    assert len(models) == 4

    # A third seed joins the table; finished runs are neither trained nor evaluated again.
    outcomes = {path: path.stat().st_mtime_ns for path in output.glob("*/outcome.json")}
    assert train.main(arguments(cases, tmp_path, *networks, "--seed", "2", "--jobs", "2")) == 0
    assert "| organnet25d | " in (output / "comparison.md").read_text()
    assert len(rows_of(output / "comparison.csv")) == len(rows) * 3 // 2
    assert {path: path.stat().st_mtime_ns for path in outcomes} == outcomes
    assert {path: path.stat().st_mtime_ns for path in models} == models
    assert "best mean DSC" in capsys.readouterr().out


def test_a_network_that_cannot_be_trained_is_named_and_the_others_continue(
    cases: list[Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "tiny-unet-seed0"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"not a checkpoint")
    networks = ("--network", "organnet25d", "unet")
    assert train.main(arguments(cases, tmp_path, *networks)) == 1
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "- tiny-unet-seed0: exit code 1: error: " in page
    assert "| organnet25d | " in page
    assert "tiny-unet-seed0" in capsys.readouterr().err
