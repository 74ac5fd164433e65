"""The requests of 3D Slicer's client, in its order, as plain HTTP (`plugins/slicer/MONAILabel`)."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from lib.imaging.geometry import Grid, from_sitk
from lib.imaging.scans import write_ct, write_label
from tests.segment_files import slicer_fields, write_seg_nrrd
from tests.server.running import TINY, Server, parts, put_case, small_ct, two_organs
from tests.waiting import wait_until

pytestmark = pytest.mark.server

CLIENT = {"client_id": "user-xyz"}
INFER_OPTIONS = {"result_extension": ".nrrd", "result_dtype": "uint8"}
"""Parameters that `MONAILabelLogic.infer` adds to the model's own settings."""


def infer(server: Server, query: str, folder: Path, **files: Any) -> tuple[sitk.Image, Any]:
    """Return the mask and the parameters of one infer, as `MONAILabelClient.infer` does."""
    config = server.ask("GET", "/info/").json()["models"]["organnet25d"]["config"]
    form = {"params": json.dumps({**first_of_lists(config), **INFER_OPTIONS, **CLIENT})}
    answer = server.ask(
        "POST", f"/infer/organnet25d?{query}", data=form, files=files or {"no": b""}
    )
    assert answer.status_code == 200, answer.text
    answer_parts = parts(answer)
    name, content = answer_parts["image"]
    assert name.endswith(".nrrd")
    path = folder / "result.nrrd"
    path.write_bytes(content)
    return sitk.ReadImage(str(path)), json.loads(answer_parts["params"][1])


def first_of_lists(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as Slicer posts it: the first element of each list."""
    return {k: v[0] if isinstance(v, list) else v for k, v in config.items()}


def test_info_is_what_slicer_reads(server: Server) -> None:
    answer = server.ask("GET", "/info/")
    assert answer.status_code == 200
    info = json.loads(answer.text, parse_constant=pytest.fail)
    assert list(info["labels"].items()) == sorted(TINY.labels.items(), key=lambda item: item[1])
    model = info["models"]["organnet25d"]
    assert (model["type"], model["dimension"], model["labels"]) == (
        "segmentation",
        3,
        dict(TINY.labels),
    )
    assert info["trainers"]["organnet25d"]["config"]["max_epochs"] == 2
    assert set(info["datastore"]) >= {"total", "completed"}


def test_next_sample_is_an_image_without_a_final_label(server: Server) -> None:
    put_case(server, "next_done", is_labelled=True)
    # One case for each strategy: the client still holds the first one at its second request.
    put_case(server, "next_open")
    put_case(server, "next_open_too")
    for strategy in ("first", "random"):
        sample = server.ask("POST", f"/activelearning/{strategy}", json=CLIENT).json()
        assert sample["id"] in server.images()
        assert sample["id"] != "next_done"
        assert sample["name"].startswith(sample["id"])
        # Slicer loads the file if it can access the path, and downloads the scan otherwise.
        assert Path(sample.get("path", server.log)).is_file()


def test_random_samples_within_a_second_do_not_fail(server: Server) -> None:
    put_case(server, "again")
    statuses = {
        server.ask("POST", "/activelearning/random", json=CLIENT).status_code for _ in range(5)
    }
    assert statuses == {200}


def test_session_holds_a_scan_that_infer_contours(server: Server, tmp_path: Path) -> None:
    ct = small_ct()
    write_ct(tmp_path / "local.nii.gz", ct)
    with (tmp_path / "local.nii.gz").open("rb") as file:
        made = server.ask(
            "PUT", "/session/", data=CLIENT, files=[("files", ("local.nii.gz", file))]
        )
    assert made.status_code == 200, made.text
    session_id = made.json()["session_id"]
    assert server.ask("GET", f"/session/{session_id}").json()["name"] == session_id
    mask, params = infer(server, f"image=local&session_id={session_id}", tmp_path)
    assert Grid.of_sitk(mask).is_same_as(ct.grid)
    assert params["label_names"]
    assert "local" not in server.images()
    assert server.ask("DELETE", f"/session/{session_id}").status_code == 200
    assert server.ask("GET", f"/session/{session_id}").status_code == 404


def test_uploaded_image_is_in_the_store_as_it_was_sent(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "upload.nii.gz"
    write_ct(path, small_ct())
    # Slicer gives the whole path of its temporary file as the file's name.
    sent = {"file": (str(path), path.read_bytes())}
    for _ in range(2):
        answer = server.ask(
            "PUT", "/datastore/?image=uploaded 1", data={"params": json.dumps(CLIENT)}, files=sent
        )
        assert (answer.status_code, answer.json()) == (200, {"image": "uploaded 1"})
    got = server.ask("GET", "/datastore/image?image=uploaded 1")
    assert got.content == path.read_bytes()
    assert server.ask("HEAD", "/datastore/image?image=uploaded 1").status_code == 200


def test_infer_by_id_returns_the_images_grid_and_the_present_organs(
    server: Server, tmp_path: Path
) -> None:
    grid = put_case(server, "by_id")
    mask, params = infer(server, "image=by_id", tmp_path)
    assert Grid.of_sitk(mask).is_same_as(grid)
    array = from_sitk(mask)
    assert array.dtype == np.uint8
    present = set(np.unique(array).tolist()) - {0}
    assert present, "a network with random weights predicts some organ"
    names = params["label_names"]
    assert names == {n: v for n, v in TINY.labels.items() if v in present}
    assert list(names.values()) == sorted(names.values()), "Slicer names the n-th value by order"
    for name, value in names.items():
        expected_ml = (array == value).sum() * grid.voxel_ml
        assert params["volumes_ml"][name] == pytest.approx(expected_ml, abs=1e-3)
    assert params["model_version"].startswith("organnet25d-tiny-")
    assert set(params["seconds"]) >= {"read", "prepare", "network", "restore", "write", "total"}


def test_infer_by_file_and_by_id_give_the_same_contours(server: Server, tmp_path: Path) -> None:
    put_case(server, "same")
    by_id, _ = infer(server, "image=same", tmp_path)
    content = (server.studies / "same.nii.gz").read_bytes()
    by_file, _ = infer(server, "image=same", tmp_path, file=("/tmp/x/same.nii.gz", content))  # noqa: S108 - a name only
    assert Grid.of_sitk(by_file).is_same_as(Grid.of_sitk(by_id))
    np.testing.assert_array_equal(from_sitk(by_file), from_sitk(by_id))


def test_infer_leaves_no_file_behind(server: Server, tmp_path: Path) -> None:
    put_case(server, "tidy")
    infer(server, "image=tidy", tmp_path)
    before = server.disk()
    infer(server, "image=tidy", tmp_path)
    infer(
        server, "image=", tmp_path, file=("a.nii.gz", (server.studies / "tidy.nii.gz").read_bytes())
    )
    assert server.disk() == before


@pytest.mark.parametrize("is_compressed", [True, False])
def test_infer_as_ohif_requests_it_returns_the_mask_only(
    server: Server, tmp_path: Path, *, is_compressed: bool
) -> None:
    grid = put_case(server, "ohif")
    params = {"result_extension": ".nrrd", "result_dtype": "uint16", "restore_label_idx": False,
              "result_compress": is_compressed}  # fmt: skip
    answer = server.ask(
        "POST",
        "/infer/organnet25d?image=ohif&output=image",
        files={"params": (None, json.dumps(params))},
    )
    assert answer.status_code == 200, answer.text
    path = tmp_path / "ohif.nrrd"
    path.write_bytes(answer.content)
    assert (b"encoding: gzip" in answer.content[:2000]) == is_compressed
    mask = sitk.ReadImage(str(path))
    assert mask.GetPixelIDTypeAsString() == "16-bit unsigned integer"
    assert Grid.of_sitk(mask).is_same_as(grid)


def test_infer_can_store_its_label_as_original(server: Server, tmp_path: Path) -> None:
    grid = put_case(server, "stored")
    form = {"params": json.dumps({"save_label": True})}
    answer = server.ask("POST", "/infer/organnet25d?image=stored", files={"no": b""}, data=form)
    assert answer.status_code == 200, answer.text
    label = read_nifti(server.ask("GET", "/datastore/label?label=stored&tag=original").content)
    assert label.shape == grid.shape_vox
    info = server.ask("GET", "/datastore/label/info?label=stored&tag=original").json()
    assert info["params"]["label_names"]
    sample = server.ask("GET", "/datastore/?output=all").json()["objects"]["stored"]
    assert "final" not in sample["labels"]


def test_saved_label_comes_back_with_the_servers_values(server: Server, tmp_path: Path) -> None:
    grid = put_case(server, "saved")
    expected = two_organs(grid)
    # Slicer numbers the segments of the file 1, 2 in the list's order; a scribbles segment came first.
    in_file = np.zeros_like(expected.array)
    in_file[expected.array == TINY.labels["Parotid_L"]] = 1
    in_file[expected.array == TINY.labels["Brainstem"]] = 2
    write_label(tmp_path / "label.nii.gz", type(expected)(in_file, grid, TINY.labels))
    params = {
        "label_info": [{"name": "parotid left", "idx": 2}, {"name": "BrainStem", "idx": 3}],
        **CLIENT,
    }
    answer = server.ask(
        "PUT",
        "/datastore/label?image=saved",
        data={"params": json.dumps(params)},
        files={"label": ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json().items() >= {"image": "saved", "label": "saved"}.items()
    changes = [
        "the values were read as the order of the segments in label_info",
        "'parotid left' was stored as Parotid_L",
        "'BrainStem' was stored as Brainstem",
        "the values were stored by their names: 1 as 4 (Parotid_L), 2 as 1 (Brainstem)",
    ]
    assert answer.json()["changes"] == changes
    (version,) = server.ask("GET", "/organnet/labels/saved?tag=final").json()
    assert version["changes"] == changes
    back = server.ask("GET", "/datastore/label?label=saved&tag=final")
    np.testing.assert_array_equal(read_nifti(back.content), expected.array)
    info = server.ask("GET", "/datastore/label/info?label=saved&tag=final").json()
    assert info["client_id"] == "user-xyz"
    assert info["label_info"] == params["label_info"]


def test_a_saved_segmentation_is_stored_by_its_own_names(server: Server, tmp_path: Path) -> None:
    """Slicer's setting for overlapping segments: all segments in a `.seg.nrrd`, their rows in `label_info`."""
    grid = put_case(server, "segmentation")
    ours = two_organs(grid)
    layers = [
        (ours.array == TINY.labels[name]).astype(np.uint8) for name in ("Brainstem", "Parotid_L")
    ]
    fields = slicer_fields([("Brainstem", 1, 0), ("Parotid_L", 1, 1)])
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", layers, grid, fields)
    info = [{"name": "Parotid_L", "idx": 1}, {"name": "Brainstem", "idx": 2}]
    answer = server.ask(
        "PUT",
        "/datastore/label?image=segmentation",
        data={"params": json.dumps({"label_info": info, **CLIENT})},
        files={"label": (file.name, file.read_bytes())},
    )
    assert answer.status_code == 200, answer.text
    back = server.ask("GET", "/datastore/label?label=segmentation&tag=final")
    np.testing.assert_array_equal(read_nifti(back.content), ours.array)


def test_training_starts_shows_its_progress_and_stops(server: Server) -> None:
    assert server.ask("GET", "/train/?check_if_running=true").status_code == 404
    for case in "abcdef":
        put_case(server, f"train_{case}", is_labelled=True)
    config = server.ask("GET", "/info/").json()["trainers"]["organnet25d"]["config"]
    posted = {**first_of_lists(config), **CLIENT, "max_epochs": 100_000}
    started = server.ask("POST", "/train/organnet25d", json=posted)
    assert started.status_code == 200, started.text
    assert started.json()["id"]
    again = server.ask("POST", "/train/organnet25d", json=posted)
    assert again.status_code == 429
    stats = wait_for_epoch(server)
    assert stats["total_epochs"] == 100_000
    assert not stats["total_time"], "Slicer takes a run with a total time as ended"
    assert isinstance(stats["best_metric"], float)
    assert server.ask("GET", "/train/?check_if_running=true").status_code == 200
    stopped = server.ask("DELETE", "/train/")
    assert stopped.json()["status"] == "STOPPED"
    assert server.ask("GET", "/train/?check_if_running=true").status_code == 404
    assert server.ask("GET", "/train/").json()["status"] == "STOPPED"
    assert server.ask("GET", "/info/").status_code == 200


def wait_for_epoch(server: Server) -> dict[str, Any]:
    """Return the statistics of the first epoch that ends."""

    def stats() -> dict[str, Any]:
        return dict(server.ask("GET", "/info/").json()["train_stats"]["organnet25d"])

    wait_until(lambda: stats().get("epoch"), "an epoch ends", context=server.end_of_log)
    return stats()


def read_nifti(content: bytes) -> Any:
    """Return the voxels of a compressed NIfTI file."""
    import gzip

    image = nib.Nifti1Image.from_stream(BytesIO(gzip.decompress(content)))
    return np.asarray(image.dataobj)
