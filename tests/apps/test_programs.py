import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml

from apps import infer, train
from lib.config import RetrainConfig
from lib.dicom.ct_writer import write_ct_series
from lib.dicom.objects import read_object
from lib.dicom.structures import label_from_structures
from lib.imaging.dicom_series import read_headers
from lib.imaging.scans import read_ct, read_label, write_ct
from lib.imaging.volume_reading import read_volume
from lib.imaging.volumes import CtVolume
from lib.models.model_history import ModelHistory
from lib.models.registry import Registry, load_model, save_model
from lib.recipes.schema import OPENKBP
from lib.retrain.settings import Settings
from lib.storage.database import FILE, FOLDER, Database
from lib.training.cases import Case
from tests.phantoms import make_ct, make_oblique_ct
from tests.tiny import TINY


@pytest.fixture(scope="module")
def trained(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder and the studies folder that `apps.train` filled it from."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY.as_dict()), encoding="utf-8")
    studies = folder / "studies"
    shutil.copytree(cases[0].image.parent, studies)
    # A tiny network does not reach the DSC that a first model needs by default.
    database = Database(studies / FOLDER / FILE)
    Settings(database, RetrainConfig()).change({"min_first_dsc": 0.0}, by="admin")
    database.close()
    arguments = ["--studies", str(studies), "--recipe", str(recipe), "--device", "cpu"]
    arguments += ["--output", str(folder / "run"), "--publish", str(folder / "models")]
    arguments += ["--starter-dir", str(folder / "no-starter")]
    assert train.main([*arguments, "--hold-out", "case_2"]) == 0
    return folder / "models", studies


def test_train_publishes_a_model_with_its_card(trained: tuple[Path, Path]) -> None:
    version = Registry(trained[0]).published_version()
    database = Database(trained[1] / FOLDER / FILE)
    assert [(p.version, p.by) for p in ModelHistory(database).promotions()] == [
        (version, "apps.train")
    ]
    database.close()
    card = json.loads((trained[0] / f"{version}.json").read_text())
    assert card["training"]["cases"] == ["case_0", "case_1"]
    assert set(card["validation"]["organ_dice"]) == set(OPENKBP.labels)
    assert card["validation"]["cases"] == ["case_2"]
    assert card["recipe"] == TINY.as_dict()


def test_infer_contours_every_scan_of_a_folder_and_names_the_refused(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    ct = make_ct()
    write_ct(scans / "good.nii.gz", ct)
    write_ct(scans / "other" / "ct.nii.gz", ct)
    (scans / "bad.nii.gz").write_bytes(b"<html>not found</html>")
    output = tmp_path / "out"
    arguments = ["--input", str(scans), "--output", str(output), "--model-dir", str(trained[0])]
    assert infer.main([*arguments, "--device", "cpu", "--pictures"]) == 1
    captured = capsys.readouterr()
    refusals = [line for line in captured.err.splitlines() if "refused" in line]
    assert len(refusals) == 1
    assert "bad" in refusals[0]
    assert "2 of 3 scans contoured" in captured.out
    for name in ("good", "other"):
        read_label(output / f"{name}.nii.gz", image_id=name, image_grid=ct.grid)
        assert json.loads((output / f"{name}.json").read_text())["model_version"]
        assert (output / f"{name}.png").stat().st_size > 1000
    assert not list(output.glob("bad*"))


def test_infer_of_one_file_succeeds(trained: tuple[Path, Path], tmp_path: Path) -> None:
    scan = next(trained[1].glob("*.nii.gz"))
    model = next(trained[0].glob("*.safetensors"))
    arguments = ["--input", str(scan), "--output", str(tmp_path), "--model", str(model)]
    assert infer.main([*arguments, "--device", "cpu"]) == 0
    name = scan.name.removesuffix(".nii.gz")
    label, grid = read_label(tmp_path / scan.name, image_id=name, image_grid=read_ct(scan).grid)
    assert np.count_nonzero(label) >= 0
    assert grid.is_same_as(read_ct(scan).grid)


def test_infer_writes_dicom_objects_of_a_series_and_refuses_them_for_a_file(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    case = read_ct(next(trained[1].glob("*.nii.gz")))
    write_ct_series(case, scans / "series", patient_id="x")
    write_ct(scans / "file" / "ct.nii.gz", case)
    arguments = ["--input", str(scans), "--output", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--model-dir", str(trained[0]), "--format", "nifti", "seg", "rtstruct"]
    assert infer.main(arguments) == 1
    assert "file: the image is not a DICOM series" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("file*"))
    headers, grid = read_headers(scans / "series", image_id="series")
    path = tmp_path / "out" / "series.nii.gz"
    array, _ = read_label(path, image_id="series", image_grid=grid)
    for kind in ("seg", "rtstruct"):
        path = tmp_path / "out" / f"series.{kind}.dcm"
        read_back = read_object(path, headers, grid, image_id="series")
        label = label_from_structures(read_back, TINY.labels, grid, "series")
        np.testing.assert_array_equal(label.array, array)


@pytest.mark.parametrize(
    "keyword", ["SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"]
)
def test_infer_goes_on_after_a_series_without_a_uid(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], keyword: str
) -> None:
    for name in ("a_no_uid", "b_good"):
        write_ct_series(make_ct(), tmp_path / "scans" / name, patient_id="x")
    for path in (tmp_path / "scans" / "a_no_uid").iterdir():
        dataset = pydicom.dcmread(path)
        delattr(dataset, keyword)
        dataset.save_as(path)
    arguments = ["--input", str(tmp_path / "scans"), "--output", str(tmp_path / "out")]
    arguments += ["--model-dir", str(trained[0]), "--device", "cpu", "--format", "seg", "rtstruct"]
    infer.main(arguments)
    captured = capsys.readouterr()
    refusals = [line for line in captured.err.splitlines() if "refused" in line]
    assert len(refusals) == 1 + ("refused: b_good" in captured.err)
    assert "refused: a_no_uid: " in captured.err
    assert keyword in captured.err


def test_infer_goes_on_after_an_unexpected_error(
    trained: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a", "b"):
        write_ct(tmp_path / "scans" / f"{name}.nii.gz", make_ct())

    def fail(path: Path, *, image_id: str) -> CtVolume:
        if image_id == "a":
            raise KeyError("unforeseen")
        return read_ct(path, image_id=image_id)

    monkeypatch.setattr("lib.imaging.scans.read_ct", fail)
    arguments = ["--input", str(tmp_path / "scans"), "--output", str(tmp_path / "out")]
    assert infer.main([*arguments, "--model-dir", str(trained[0]), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "refused: a: unexpected error (KeyError: 'unforeseen'); please report it" in captured.err
    assert "1 of 2 scans contoured" in captured.out


def test_infer_deep_writes_the_map_and_how_sure_each_organ_is(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = next(trained[1].glob("*.nii.gz"))
    arguments = ["--input", str(scan), "--model-dir", str(trained[0]), "--device", "cpu"]
    assert infer.main([*arguments, "--output", str(tmp_path), "--deep", "--pictures"]) == 0
    captured = capsys.readouterr().out
    assert "deep, on cpu: 12 passes over each scan (4 views x 3 draws of dropout)" in captured
    name = scan.name.removesuffix(".nii.gz")
    ct = read_ct(scan)
    read_label(tmp_path / scan.name, image_id=name, image_grid=ct.grid)
    values, grid = read_volume(tmp_path / f"{name}_uncertainty.nii.gz", name)
    assert grid.is_same_as(ct.grid)
    assert 0 <= values.min() < values.max() <= 1
    about = json.loads((tmp_path / f"{name}.json").read_text())
    assert set(about["uncertainty"]) == set(OPENKBP.labels)
    assert about["uncertainty"]["Brainstem"]["samples"] == 12
    assert about["deep"] == {
        "passes": 12,
        "models": [about["model_version"]],
        "views": ["plain", "mirrored", "-10 HU", "mirrored, +10 HU"],
        "dropout_samples": 3,
        "overlap": 0.6,
        "notes": [],
    }
    for picture in (f"{name}.png", f"{name}_uncertainty.png"):
        assert (tmp_path / picture).stat().st_size > 1000


def test_infer_deep_asks_the_models_promoted_last_and_names_those_it_cannot(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(trained[0], models)
    registry = Registry(models)
    first = registry.served_path()
    assert first is not None
    weights = load_model(first).network.state_dict()
    versions = []
    for step in (1, 2):
        weights = {**weights, "head.bias": weights["head.bias"] + step}
        versions.append(save_model(models, weights, TINY, {}))
        registry.publish(versions[-1], reason="for a test")
    (models / f"{versions[0]}.safetensors").write_bytes(b"damaged")
    scan = next(trained[1].glob("*.nii.gz"))
    arguments = ["--input", str(scan), "--device", "cpu", "--deep", "--output", str(tmp_path)]
    assert infer.main([*arguments, "--model-dir", str(models), "--ensemble", "2"]) == 0
    captured = capsys.readouterr().out
    assert "8 passes over each scan (4 views x 2 models)" in captured
    assert f"note: {versions[0]} is skipped" in captured
    about = json.loads((tmp_path / scan.name.replace(".nii.gz", ".json")).read_text())
    assert about["deep"]["models"] == [versions[1], first.stem]
    assert len(about["deep"]["notes"]) == 1


def test_infer_refuses_an_ensemble_of_none(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", str(trained[1]), "--output", str(tmp_path), "--deep"]
    assert infer.main([*arguments, "--model-dir", str(trained[0]), "--ensemble", "0"]) == 1
    assert "error: deep: models must be at least 1, not 0" in capsys.readouterr().err


def test_infer_without_a_model_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "STARTER_DIR", tmp_path / "none")
    write_ct(tmp_path / "scan.nii.gz", make_ct())
    arguments = ["--input", str(tmp_path), "--output", str(tmp_path / "out")]
    assert infer.main([*arguments, "--model-dir", str(tmp_path / "models")]) == 1
    assert (
        "there is no active model: train one, or give weights with --model"
        in capsys.readouterr().err
    )


def test_train_without_cases_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ct(tmp_path / "scan.nii.gz", make_ct())
    assert train.main(["--studies", str(tmp_path), "--output", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--max-minutes", "1", "--budget-cpu-minutes", "1"],
            "max_minutes and cpu_minutes are both set",
        ),
        (["--budget-cpu-minutes", "-1"], "the time limit of a run must be above 0 minutes"),
        (["--mlflow", "mlruns"], "write sqlite:///mlruns/mlflow.db"),
    ],
)
def test_train_refuses_flags_that_cannot_be_meant(
    flags: list[str],
    message: str,
    trained: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--studies", str(trained[1]), "--output", str(tmp_path / "run"), *flags]
    assert train.main(arguments) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert message in captured
    assert not (tmp_path / "run").exists()


def test_train_prints_its_record_and_moves_its_bar_with_every_step(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--studies", str(trained[1]), "--output", str(tmp_path), "--device", "cpu"]
    arguments += ["--recipe", str(trained[0].parent / "tiny.yaml"), "--hold-out", "case_2"]
    assert train.main([*arguments, "--epochs", "1", "--no-tensorboard"]) == 0
    captured = capsys.readouterr()
    assert "validation_cases: {case_2: " in captured.out
    assert (tmp_path / "config.yaml").read_text().strip() in captured.out
    assert "step 2 of 2" in captured.err
    assert "min left" in captured.err
    assert not (tmp_path / "tensorboard").exists()


def test_scans_of_one_name_both_get_a_result_of_their_own(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    marked = make_ct()
    write_ct(tmp_path / "scans" / "s.nii", marked)
    write_ct(tmp_path / "scans" / "s.nii.gz", make_oblique_ct())
    output = tmp_path / "out"
    arguments = ["--input", str(tmp_path / "scans"), "--output", str(output)]
    assert infer.main([*arguments, "--model-dir", str(trained[0]), "--device", "cpu"]) == 0
    read_label(output / "s.nii.nii.gz", image_id="s", image_grid=marked.grid)
    read_label(output / "s.nii.gz.nii.gz", image_id="s", image_grid=make_oblique_ct().grid)
