import csv
import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.errors import ConfigError
from lib.evaluation.case_loading import find_cases, read_contours
from lib.evaluation.table import (
    COLUMNS,
    Evaluation,
    Row,
    evaluate,
    organ_statistics,
    overall,
    read_csv,
    statistics,
    summary,
    write_csv,
)
from lib.imaging.scans import write_label
from lib.imaging.volumes import LabelVolume
from tests.experiments.network_results import make_row
from tests.phantoms import make_grid, rotation

VALUES = {"Brainstem": 1, "Parotid_L": 2, "GTV": 9}
VOXEL_ML = 1.5 * 2 * 3 / 1000


def label(**boxes: tuple[int, int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """A label with, for each organ, a box from its first to its second index along x."""
    array = np.zeros(make_grid().shape_vox, np.uint8)
    for name, (start, stop) in boxes.items():
        y = slice(2, 6) if name == "Brainstem" else slice(8, 12)
        array[start:stop, y, 3:7] = VALUES[name]
    return array


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """Three cases: one shifted, one with a missed organ, one with an unknown organ; and some odd ones."""
    cases = {
        "shifted": (
            label(Brainstem=(2, 10), Parotid_L=(2, 6)),
            label(Brainstem=(4, 12), Parotid_L=(2, 6)),
        ),
        "missed": (label(Brainstem=(2, 10), Parotid_L=(2, 6)), label(Brainstem=(2, 10))),
        "unknown": (
            label(Brainstem=(2, 10)),
            label(Brainstem=(2, 10), Parotid_L=(3, 5), GTV=(15, 17)),
        ),
    }
    for case, (reference, prediction) in cases.items():
        for side, array in (("reference", reference), ("prediction", prediction)):
            path = tmp_path / side / f"{case}.nii.gz"
            write_label(path, LabelVolume(array, make_grid(), {}))
    oblique = make_grid(directions=rotation(about_z_deg=20))
    for side, grid in (("reference", make_grid()), ("prediction", oblique)):
        volume = LabelVolume(label(Brainstem=(2, 10)), grid, {})
        write_label(tmp_path / side / "grids.nii.gz", volume)
        write_label(tmp_path / side / f"only_{side}.nii.gz", volume)
    sides = (find_cases(tmp_path / "reference"), find_cases(tmp_path / "prediction"))
    return evaluate(*sides, values=VALUES)


def row(evaluation: Evaluation, case: str, organ: str) -> Row:
    return next(r for r in evaluation.rows if (r.case, r.organ) == (case, organ))


def test_a_shift_by_two_voxels_of_eight(evaluation: Evaluation) -> None:
    shifted = row(evaluation, "shifted", "Brainstem")
    assert shifted.dsc == pytest.approx(0.75)
    assert shifted.hd95_mm == pytest.approx(3.0)  # two voxels of 1.5 mm
    assert shifted.tolerance_mm == 2.5
    assert shifted.volume_reference_ml == pytest.approx(8 * 4 * 4 * VOXEL_ML)
    assert shifted.volume_difference_ml == pytest.approx(0)
    assert row(evaluation, "shifted", "Parotid_L").surface_dsc == 1.0


def test_a_missed_organ_counts_with_zero_and_without_distances(evaluation: Evaluation) -> None:
    missed = row(evaluation, "missed", "Parotid_L")
    assert missed.is_missed
    assert (missed.dsc, missed.surface_dsc, missed.volume_prediction_ml) == (0, 0, 0)
    assert math.isnan(missed.hd95_mm)
    assert math.isnan(missed.msd_mm)
    numbers = organ_statistics(evaluation.rows_of("Parotid_L"))
    assert (numbers["dsc"]["n"], numbers["dsc"]["mean"]) == (2, 0.5)
    assert (numbers["hd95_mm"]["n"], numbers["hd95_mm"]["mean"]) == (1, 0.0)


def test_an_organ_that_the_reference_lacks_is_unknown(evaluation: Evaluation) -> None:
    assert [r.organ for r in evaluation.rows if r.case == "unknown"] == ["Brainstem"]
    assert evaluation.unknown == {"unknown": ["Parotid_L"]}


def test_the_summary_lists_what_was_left_out_and_why(evaluation: Evaluation) -> None:
    left_out = summary(evaluation)["left_out"]
    assert left_out["names_that_mean_no_organ"]["prediction"] == {
        "GTV (value 9)": ["missed", "shifted", "unknown"]
    }
    assert "the label lies on" in left_out["cases_refused"]["grids"]
    assert left_out["cases_without_prediction"] == ["only_reference"]
    assert left_out["cases_without_reference"] == ["only_prediction"]
    assert summary(evaluation)["missed"] == [{"case": "missed", "organ": "Parotid_L"}]
    assert summary(evaluation)["label_values_from"] == {
        "reference": {"--labels": 3},
        "prediction": {"--labels": 3},
    }


def test_the_summary_counts_each_organ(evaluation: Evaluation) -> None:
    organs = summary(evaluation)["organs"]
    assert list(organs) == ["Brainstem", "Parotid_L"]
    assert organs["Parotid_L"]["n"] == 2
    assert organs["Parotid_L"]["missed"] == 1
    assert organs["Parotid_L"]["unknown"] == 1
    # Brainstem: 0.75, 1, 1. Parotid: 1, 0.
    assert overall(evaluation)["dsc"] == {
        "mean_of_organ_means": pytest.approx((2.75 / 3 + 0.5) / 2),
        "mean_of_contours": pytest.approx(3.75 / 5),
    }


def test_the_table_has_a_row_each_and_empty_fields_for_unknown_numbers(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    write_csv(tmp_path / "metrics.csv", evaluation.rows)
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert ",".join(COLUMNS) == (
        "case,organ,dsc,hd95_mm,surface_dsc,tolerance_mm,msd_mm,volume_reference_ml,volume_prediction_ml"
    )
    missed = next(r for r in rows if (r["case"], r["organ"]) == ("missed", "Parotid_L"))
    assert (missed["dsc"], missed["hd95_mm"], missed["msd_mm"]) == ("0", "", "")


def test_only_the_requested_organs_are_compared(tmp_path: Path) -> None:
    for side in ("reference", "prediction"):
        volume = LabelVolume(label(Brainstem=(2, 10), Parotid_L=(2, 6)), make_grid(), {})
        write_label(tmp_path / side / "a.nii.gz", volume)
    sides = (find_cases(tmp_path / "reference"), find_cases(tmp_path / "prediction"))
    evaluation = evaluate(*sides, values=VALUES, organs=["Brainstem"])
    assert evaluation.organs == ["Brainstem"]
    assert evaluation.not_requested == ["Parotid_L"]


def test_no_common_case_is_refused() -> None:
    with pytest.raises(ConfigError, match="references are a, predictions b, c, d and 1 more"):
        evaluate({"a": Path("a")}, {name: Path(name) for name in "bcde"})


def test_statistics_leave_unknown_values_out() -> None:
    assert statistics([1.0, float("nan"), 3.0]) == {
        "n": 2, "mean": 2.0, "sd": pytest.approx(math.sqrt(2)), "median": 2.0,
        "p5": pytest.approx(1.1), "p95": pytest.approx(2.9),
    }  # fmt: skip
    assert statistics([2.0])["sd"] is None
    assert statistics([float("nan")]) == {
        "n": 0, "mean": None, "sd": None, "median": None, "p5": None, "p95": None,
    }  # fmt: skip


def test_two_readers_of_real_scans(shared_data: Path) -> None:
    """Nikolov et al. report, for radiographer against oncologist, a surface DSC above 0.9 for most organs."""
    folder = shared_data / "tcia-expert-masks"
    references, predictions = (
        {"TCGA-CV-5978": find_cases(folder / side)["TCGA-CV-5978"]}
        for side in ("oncologist", "radiographer")
    )
    evaluation = evaluate(references, predictions)
    assert len(evaluation.rows) == 21
    assert not evaluation.unmatched
    assert row(evaluation, "TCGA-CV-5978", "Brain").dsc > 0.97
    assert row(evaluation, "TCGA-CV-5978", "Bone_Mandible").dsc > 0.9
    assert 0.8 < overall(evaluation)["dsc"]["mean_of_organ_means"] < 0.95


def test_metrics_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [make_row("a", "Brainstem", 0.75), make_row("a", "Larynx", 0.0)]
    write_csv(tmp_path / "metrics.csv", rows)
    read = read_csv(tmp_path / "metrics.csv")
    assert read[0] == rows[0]
    assert str(read[1]) == str(rows[1])
    (tmp_path / "metrics.csv").write_text("case,organ\na,Brainstem\n")
    with pytest.raises(ConfigError, match="cannot be read as a table"):
        read_csv(tmp_path / "metrics.csv")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_case_that_the_disk_does_not_give_is_refused_and_the_others_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    volume = LabelVolume(label(Brainstem=(2, 10)), make_grid(), {})
    for side in ("reference", "prediction"):
        for case in ("a", "b"):
            write_label(tmp_path / side / f"{case}.nii.gz", volume)
    sides = (find_cases(tmp_path / "reference"), find_cases(tmp_path / "prediction"))

    def failing(case: str, *given: Any, **named: Any) -> Any:
        if case == "b":
            raise OSError(code, os.strerror(code))
        return read_contours(case, *given, **named)

    monkeypatch.setattr("lib.evaluation.table.read_contours", failing)
    found = evaluate(*sides, values=VALUES)
    assert found.cases == ["a"]
    assert found.refused == {"b": f"b: {os.strerror(code)}"}
