from pathlib import Path

import pytest
import torch

from apps.evaluate_clicks import main
from lib.imaging.scans import write_ct, write_label
from lib.models.registry import save_model
from lib.networks.build import build_network
from tests.server.running import TINY, small_ct, two_organs


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    version = save_model(tmp_path, build_network(TINY).state_dict(), TINY, {})
    return tmp_path / f"{version}.safetensors"


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        write_ct(tmp_path / "cases" / name / "ct.nii.gz", small_ct(name))
        write_label(tmp_path / "cases" / name / "label.nii.gz", two_organs(small_ct().grid))
    return tmp_path / "cases"


def test_a_table_and_a_csv_are_written(
    studies: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--studies", str(studies), "--model", str(weights), "--output", str(tmp_path / "out")]
    assert main([*flags, "--hold-out", "two", "--clicks", "1"]) == 0
    printed = capsys.readouterr().out
    assert "| Brainstem | 1 |" in printed
    assert (tmp_path / "out" / "clicks.md").read_text().strip() in printed
    lines = (tmp_path / "out" / "clicks.csv").read_text().splitlines()
    assert [line.rsplit(",", 1)[0] for line in lines] == [
        "case,organ,clicks",
        "two,Brainstem,0",
        "two,Brainstem,1",
        "two,Parotid_L,0",
        "two,Parotid_L,1",
    ]


def test_an_unknown_case_is_refused(
    studies: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--studies", str(studies), "--model", str(weights), "--output", str(tmp_path / "out")]
    assert main([*flags, "--hold-out", "three"]) == 1
    assert "no labelled case is named three" in capsys.readouterr().err
