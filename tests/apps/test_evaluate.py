import csv
import json
from pathlib import Path

import numpy as np
import pytest

from apps import evaluate
from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.recipes.schema import OPENKBP
from phantom import head_and_neck_phantom


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms as label volumes and as masks; predicted one voxel off, the second's cord missed."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed in range(2):
        case = f"case_{seed}"
        ct, label = head_and_neck_phantom(seed, grid_shape=(64, 64, 48), labels=OPENKBP.labels)
        write_ct(folder / "images" / f"{case}.nii.gz", ct)
        write_label(folder / "reference" / f"{case}.nii.gz", label)
        for organ, value in label.labels.items():
            name = organ.replace("_", "-") + ".nrrd"
            mask = (label.array == value).astype(np.uint8)
            write_label(folder / "masks" / case / name, LabelVolume(mask, ct.grid, {}))
        moved = np.roll(label.array, 1, axis=0)
        if seed == 1:
            moved[moved == label.labels["SpinalCord"]] = 0
        write_label(
            folder / "prediction" / f"{case}.nii.gz", LabelVolume(moved, ct.grid, label.labels)
        )
        (folder / "prediction" / f"{case}.json").write_text(
            json.dumps({"labels": {**label.labels}})
        )
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(*arguments: str | Path) -> int:
    return evaluate.main([str(a) for a in arguments])


def test_volumes_against_volumes(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--reference", cohort / "reference", "--prediction", cohort / "prediction",
               "--images", cohort / "images", "--output", tmp_path) == 0  # fmt: skip
    output = capsys.readouterr().out
    assert "missed by the prediction (DSC 0): SpinalCord of case_1" in output
    rows = rows_of(tmp_path)
    assert len(rows) == 14
    missed = next(r for r in rows if (r["case"], r["organ"]) == ("case_1", "SpinalCord"))
    assert (missed["dsc"], missed["hd95_mm"], missed["volume_prediction_ml"]) == ("0", "", "0")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["organs"]["SpinalCord"]["missed"] == 1
    assert summary["label_values_from"]["prediction"] == {"the card beside it": 2}
    assert summary["label_values_from"]["reference"] == {"organ set openkbp": 2}
    report = (tmp_path / "report.html").read_text()
    assert "CT window" in report
    assert report.count("data:image/png;base64,") == 4 + 6
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "dsc.png", "hd95.png", "surface-dsc.png", "volumes.png",
    ]  # fmt: skip


def test_masks_against_volumes_give_the_same_numbers(cohort: Path, tmp_path: Path) -> None:
    common = ("--prediction", cohort / "prediction", "--labels", "openkbp")
    assert run("--reference", cohort / "reference", *common, "--output", tmp_path / "a") == 0
    assert run("--reference", cohort / "masks", *common, "--output", tmp_path / "b") == 0
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


def test_identical_masks_agree(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--reference", cohort / "masks", "--prediction", cohort / "masks",
               "--organs", "Brainstem", "LeftParotid", "--output", tmp_path) == 0  # fmt: skip
    assert {(r["organ"], r["dsc"], r["hd95_mm"], r["surface_dsc"]) for r in rows_of(tmp_path)} == {
        ("Brainstem", "1", "0", "1"),
        ("Parotid_L", "1", "0", "1"),
    }
    assert "left out, not in --organs: Bone_Mandible" in capsys.readouterr().out


def test_a_case_that_cannot_be_compared_is_named_and_the_others_are_evaluated(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = tmp_path / "prediction"
    predictions.mkdir()
    for path in (cohort / "reference").glob("*.nii.gz"):
        (predictions / path.name).write_bytes(path.read_bytes())
    (predictions / "case_0.nii.gz").write_bytes(b"<html>not found</html>")
    assert run("--reference", cohort / "reference", "--prediction", predictions,
               "--labels", "openkbp", "--output", tmp_path / "out") == 1  # fmt: skip
    output = capsys.readouterr()
    assert "refused: case_0: case_0.nii.gz holds a web page" in output.err
    assert "1 cases in" in output.out


def test_ambiguous_label_values_end_in_one_line(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--reference", cohort / "reference", "--prediction", cohort / "reference",
               "--output", tmp_path) == 1  # fmt: skip
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: case_0: the values [1, 2, 3, 4, 5, 6, 7] of case_0.nii.gz fit")
    assert "--labels" in last


def test_an_organ_that_is_not_known_is_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--reference", cohort / "masks", "--prediction", cohort / "masks",
               "--organs", "GTV", "--output", tmp_path) == 1  # fmt: skip
    assert "error: --organs: 'GTV' is not a known organ" in capsys.readouterr().err
