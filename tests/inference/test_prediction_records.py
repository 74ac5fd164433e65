from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.errors import DatastoreError
from lib.imaging.scans import write_ct
from lib.imaging.volumes import LabelVolume
from lib.inference import prediction_records
from lib.inference.organ_summary import OrganSummary
from lib.inference.prediction_records import PredictionRecords
from lib.inference.preprocessing import Pipeline
from lib.inference.single_pass import ContourResult
from lib.inference.uncertainty import ModelUncertainty
from lib.isolation.inputs import Input
from lib.recipes.schema import OPENKBP
from lib.storage.database import Database
from tests.phantoms import SPACING_MM, make_ct, make_label

RECIPE = replace(OPENKBP, spacing_mm=SPACING_MM, spacing_tolerance=0.0)
ORGANS = {"Brainstem": OrganSummary(uncertainty=0.25, is_cut=True, doubts=("far too large",))}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "case.nii.gz"
    write_ct(path, make_ct())
    return path


@pytest.fixture
def records(database: Database, tmp_path: Path) -> PredictionRecords:
    return PredictionRecords(database, tmp_path)


def result(version: str = "v1", *, moved_vox: int = 0) -> ContourResult:
    """Return contours with an entropy of 0.374 wherever the network was applied."""
    ct = make_ct()
    label = LabelVolume(np.roll(make_label(), moved_vox, 0), ct.grid, OPENKBP.labels)
    prepared = Pipeline(RECIPE).prepare(ct)
    entropy = np.full(prepared.hu.shape, 0.374, np.float32)
    likely = np.zeros(entropy.shape, np.uint8)
    uncertainty = ModelUncertainty(entropy, likely, prepared.frame, prepared.box)
    return ContourResult(label, version, {}, uncertainty)


def test_a_prediction_survives_a_restart(
    records: PredictionRecords, database: Database, scan: Path, tmp_path: Path
) -> None:
    records.keep("case", Input(scan), result(), ORGANS, is_deep=False)
    row = PredictionRecords(database, tmp_path).newest("case", scan)
    assert (row.model_version, row.is_deep) == ("v1", False)
    assert row.organs["Brainstem"]["uncertainty"] == 0.25
    assert row.organs["Brainstem"]["doubts"] == ["far too large"]


def test_the_uncertainty_map_is_in_percent_on_the_cts_voxels(
    records: PredictionRecords, scan: Path
) -> None:
    records.keep("case", Input(scan), result(), ORGANS, is_deep=False)
    percent, grid = records.uncertainty_percent(records.newest("case", scan))
    ct = make_ct()
    assert grid.is_same_as(ct.grid)
    assert percent.dtype == np.uint8
    assert (percent[ct.array_hu > 0] == 37).all()
    assert set(np.unique(percent)) <= {0, 37}


def test_the_newest_prediction_counts(records: PredictionRecords, scan: Path) -> None:
    for version in ("v1", "v2", "v1"):
        records.keep("case", Input(scan), result(version), ORGANS, is_deep=False)
    assert records.newest("case", scan).model_version == "v1"


def test_an_image_without_a_prediction_and_a_scan_that_changed_are_told(
    records: PredictionRecords, scan: Path
) -> None:
    with pytest.raises(DatastoreError, match="case: no prediction is kept; run the model"):
        records.newest("case", scan)
    records.keep("case", Input(scan), result(), ORGANS, is_deep=False)
    scan.write_bytes(scan.read_bytes() + b"0")
    with pytest.raises(DatastoreError, match="case: the scan has changed since the last run"):
        records.newest("case", scan)


def test_the_oldest_predictions_of_an_image_are_removed(
    records: PredictionRecords, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_records, "KEPT_PER_IMAGE", 2)
    digests = []
    for moved_vox in range(3):
        contours = result(moved_vox=moved_vox)
        digests.append(contours.label.digest())
        records.keep("case", Input(scan), contours, ORGANS, is_deep=False)
    found = [records.model_of("case", digest) for digest in digests]
    assert found == [None, "v1", "v1"]
    assert records.model_of("other", digests[2]) is None


def test_the_oldest_maps_are_removed(
    records: PredictionRecords, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.keep("case", Input(scan), result(), ORGANS, is_deep=False)
    (first,) = (tmp_path / "predictions").iterdir()
    monkeypatch.setattr(prediction_records, "MAP_BYTES", first.stat().st_size + 10)
    records.keep("other", Input(scan), result(), ORGANS, is_deep=False)
    assert not first.exists()
    with pytest.raises(DatastoreError, match="map of the last run is not kept any more"):
        records.uncertainty_percent(records.newest("case", scan))
    percent, _ = records.uncertainty_percent(records.newest("other", scan))
    assert percent.any()


def test_a_damaged_map_is_told(records: PredictionRecords, scan: Path, tmp_path: Path) -> None:
    records.keep("case", Input(scan), result(), ORGANS, is_deep=False)
    (file,) = (tmp_path / "predictions").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DatastoreError, match="run the model again"):
        records.uncertainty_percent(records.newest("case", scan))


def test_contours_do_not_depend_on_whether_the_record_can_be_written(
    records: PredictionRecords, scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "predictions").write_text("in the way")
    records.keep("case", Input(scan), result(), ORGANS, is_deep=False)
    assert "case: what is known of its contours could not be kept" in caplog.text
