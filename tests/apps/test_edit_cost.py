import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from apps.edit_cost import main
from lib.activelearning.edit_costs import EditCostRecords
from lib.evaluation.edit_cost import EditCosts
from lib.storage.database import FILE, Database, state_folder
from tests.activelearning.edited import label_of, organ


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A studies folder whose database knows three submissions."""
    folder = tmp_path / "studies"
    database = Database(state_folder(str(folder), tmp_path) / FILE)
    records = EditCostRecords(database)
    submissions: Sequence[tuple[str, EditCosts | None, str | None, bool]] = [
        ("one", EditCosts({"Larynx": organ(120), "SpinalCord": organ(0)}), None, False),
        ("two", EditCosts({"Larynx": organ(40), "SpinalCord": organ(9, is_left_out=True)}), None,
         True),
        ("three", None, "three: the scan is gone", False),
    ]  # fmt: skip
    for hour, (image_id, costs, error, was_trained_on) in enumerate(submissions):
        label = label_of(image_id, hour=hour)
        with database.writing() as session:
            session.add(label)
        records.add(label, costs, was_trained_on=was_trained_on, error=error)
    database.close()
    return folder


def test_the_program_prints_each_submission_the_organs_and_the_conclusion(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--studies", str(studies)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "submitted         image  author  model  organs  DSC    added mm  voxels",
        "2024-05-01 08:00  one    ada     m      2       0.900  120       120",
        "2024-05-01 09:00  two    ada     m      1       0.900  40        40      "
        "does not count; case used in training before; left out: SpinalCord",
        "2024-05-01 10:00  three  ada     m      0       -      -         -       "
        "not measured: three: the scan is gone",
        "",
        "organ       cases  unchanged  missed  DSC    added mm  changed ml",
        "Larynx      1      0          0       0.900  120       1.20",
        "SpinalCord  1      1          0       0.900  0         0.00",
        "",
        "50% of the last contours were submitted as predicted",
        "",
        "too few submissions to say: 1 of 10",
    ]


def test_the_program_writes_the_chart_and_the_tables(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["--studies", str(studies), "--output", str(output)]) == 0
    assert f"see {output / 'edit-cost.png'}" in capsys.readouterr().out
    assert (output / "edit-cost.png").read_bytes().startswith(b"\x89PNG")
    with (output / "edit-cost.csv").open(newline="", encoding="utf-8") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["one", "two", "three"]
    assert (output / "edit-cost-organs.csv").is_file()


def test_a_folder_without_a_server_is_refused_and_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--studies", str(tmp_path)]) == 1
    output = capsys.readouterr().err
    assert output.startswith("error: --studies: ")
    assert "does not exist; give the studies folder" in output
    assert list(tmp_path.iterdir()) == []
