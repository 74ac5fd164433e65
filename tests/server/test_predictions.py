"""What is known of the last contours of an image: in the answer to infer, and later without a second run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.imaging.geometry import Grid
from lib.imaging.scans import write_label
from lib.imaging.volume_reading import read_volume
from lib.imaging.volumes import LabelVolume
from lib.recipes.schema import OPENKBP
from tests.server.running import Server, parts, put_case

pytestmark = pytest.mark.server

KEYS = {"uncertainty", "volume_ml", "centre_mm", "uncertain_slice", "is_cut", "doubts", "reason"}


@pytest.fixture(scope="module")
def grid(server: Server) -> Grid:
    return put_case(server, "drawn")


def infer(server: Server, image: str) -> tuple[dict[str, Any], bytes]:
    """Return the parameters and the label of one request for contours."""
    sent = server.ask("POST", f"/infer/organnet25d?image={image}", data={"params": "{}"})
    assert sent.status_code == 200, sent.text
    answer_parts = parts(sent)
    return json.loads(answer_parts["params"][1]), answer_parts["image"][1]


@pytest.fixture(scope="module")
def answer(server: Server, grid: Grid) -> dict[str, Any]:
    """The parameters of one request for contours."""
    return infer(server, "drawn")[0]


def submit(
    server: Server, image: str, content: bytes, *, name: str = "label.nii.gz"
) -> dict[str, Any]:
    files = {"label": (name, content)}
    sent = server.ask("PUT", f"/datastore/label?image={image}", files=files)
    assert sent.status_code == 200, sent.text
    stored: dict[str, Any] = sent.json()
    return stored


def as_nrrd(content: bytes, folder: Path, *, changed_voxels: int = 0) -> bytes:
    """Return a label as NRRD, with some of its voxels changed."""
    path = folder / "label.nii.gz"
    path.write_bytes(content)
    array, its_grid = read_volume(path, "label")
    for index in range(changed_voxels):
        array[index, 0, 0] = 1 if array[index, 0, 0] != 1 else 2
    write_label(folder / "label.nrrd", LabelVolume(array, its_grid, OPENKBP.labels))
    return (folder / "label.nrrd").read_bytes()


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


def test_a_prediction_that_is_submitted_unchanged_is_recorded_as_such(
    server: Server, tmp_path: Path
) -> None:
    put_case(server, "accepted")
    params, label = infer(server, "accepted")
    versions = [params["model_version"], params["model_version"], None]
    changed = as_nrrd(label, tmp_path, changed_voxels=1)
    sent = [
        submit(server, "accepted", label),
        submit(server, "accepted", as_nrrd(label, tmp_path), name="label.nrrd"),
        submit(server, "accepted", changed, name="label.nrrd"),
    ]
    assert [answer["unchanged_from"] for answer in sent] == versions
    history = server.ask("GET", "/organnet/labels/accepted").json()
    assert [version["unchanged_from"] for version in history] == versions
    current = server.ask("GET", "/organnet/labels?image=accepted").json()["labels"]
    assert current[0]["unchanged_from"] is None


def test_a_prediction_of_another_image_or_saved_by_the_server_was_not_accepted(
    server: Server,
) -> None:
    for image in ("one", "other"):
        put_case(server, image)
    _, label = infer(server, "one")
    assert submit(server, "other", label)["unchanged_from"] is None
    params = json.dumps({"save_label": True, "label_tag": "final"})
    assert server.ask("POST", "/infer/organnet25d?image=one", data={"params": params}).ok
    (version,) = server.ask("GET", "/organnet/labels/one").json()
    assert (version["source"], version["unchanged_from"]) == ("infer", None)
