"""What is known of the last contours of an image: in the answer to infer, and later without a second run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.imaging.geometry import Grid
from lib.imaging.volume_reading import read_volume
from lib.recipes.schema import OPENKBP
from tests.server.running import Server, parts, put_case

pytestmark = pytest.mark.server

KEYS = {"uncertainty", "volume_ml", "centre_mm", "uncertain_slice", "is_cut", "doubts", "reason"}


@pytest.fixture(scope="module")
def grid(server: Server) -> Grid:
    return put_case(server, "drawn")


@pytest.fixture(scope="module")
def answer(server: Server, grid: Grid) -> dict[str, Any]:
    """The parameters of one request for contours."""
    sent = server.ask("POST", "/infer/organnet25d?image=drawn", data={"params": "{}"})
    assert sent.status_code == 200, sent.text
    params: dict[str, Any] = json.loads(parts(sent)["params"][1])
    return params


def test_the_answer_to_infer_has_a_summary_of_each_organ(answer: dict[str, Any]) -> None:
    assert set(answer["organs"]) == set(OPENKBP.labels)
    assert all(set(organ) == KEYS for organ in answer["organs"].values())
    drawn = {name for name, organ in answer["organs"].items() if organ["volume_ml"] is not None}
    assert drawn == set(answer["label_names"])
    for name in drawn:
        assert answer["organs"][name]["volume_ml"] == answer["volumes_ml"][name]


def test_the_summary_is_there_later_without_a_second_run(
    server: Server, answer: dict[str, Any]
) -> None:
    later = server.ask("GET", "/organnet/predictions/drawn").json()
    assert later["organs"] == answer["organs"]
    assert (later["image"], later["model_version"]) == ("drawn", answer["model_version"])
    assert later["is_deep"] is False


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd"])
def test_the_uncertainty_map_lies_on_the_cts_voxels(
    server: Server, grid: Grid, answer: dict[str, Any], tmp_path: Path, suffix: str
) -> None:
    sent = server.ask("GET", f"/organnet/predictions/drawn/uncertainty?format={suffix}")
    assert sent.status_code == 200, sent.text
    assert sent.headers["Content-Disposition"] == (
        f'attachment; filename="drawn-uncertainty.{suffix}"'
    )
    path = tmp_path / f"map.{suffix}"
    path.write_bytes(sent.content)
    percent, its_grid = read_volume(path, "map")
    assert its_grid.is_same_as(grid)
    assert percent.dtype == np.uint8
    assert 0 < percent.max() <= 100


def test_unknown_images_and_images_without_a_run_are_told(server: Server, grid: Grid) -> None:
    put_case(server, "not_drawn")
    for path in ("", "/uncertainty"):
        assert server.ask("GET", f"/organnet/predictions/unknown{path}").status_code == 404
        sent = server.ask("GET", f"/organnet/predictions/not_drawn{path}")
        assert sent.status_code == 404
        assert "not_drawn: no prediction is kept; run the model" in sent.json()["detail"]


def test_a_scan_that_was_sent_is_summarised_and_not_kept(server: Server, grid: Grid) -> None:
    scan = (server.studies / "drawn.nii.gz").read_bytes()
    sent = server.ask(
        "POST", "/infer/organnet25d?output=json", files={"file": ("sent.nii.gz", scan)}
    )
    assert set(sent.json()["organs"]) == set(OPENKBP.labels)
    assert server.ask("GET", "/organnet/predictions/sent").status_code == 404
