"""The client library of 3D Slicer, as MONAI Label installs it, against a real server."""

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from lib.imaging.geometry import Grid, from_sitk
from lib.imaging.scans import write_ct, write_label
from tests.server.running import Server, put_case, small_ct, two_organs

CLIENT = Path(sys.prefix, "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py")

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not CLIENT.is_file(), reason=f"no Slicer client at {CLIENT}"),
    # The client leaves open files and connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slicer_client", CLIENT)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports cgi
        spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def client(module: ModuleType, server: Server, tmp_path: Path) -> Any:
    return module.MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="user-xyz")


def test_the_client_contours_a_sample_and_submits_it(
    client: Any, server: Server, tmp_path: Path
) -> None:
    grid = put_case(server, "00_first")
    assert client.auth_enabled() is False
    info = client.info()
    config = info["models"]["organnet25d"]["config"]
    sample = client.next_sample("first", {})
    assert sample["id"] == "00_first"
    file, params = client.infer(
        "organnet25d",
        sample["id"],
        {**config, "result_extension": ".nrrd", "result_dtype": "uint8"},
    )
    mask = sitk.ReadImage(file)
    assert Grid.of_sitk(mask).is_same_as(grid)
    assert sorted(params["label_names"].values()) == [v for v in np.unique(from_sitk(mask)) if v]
    # Slicer's segments are in the order of their names, numbered from 1.
    label_info = [{"name": name, "idx": n} for n, name in enumerate(params["label_names"], 1)]
    expected = np.searchsorted([0, *params["label_names"].values()], from_sitk(mask)).astype(
        np.uint8
    )
    write_label(tmp_path / "label.nii.gz", type(two_organs(grid))(expected, grid, {}))
    saved = client.save_label(
        sample["id"], str(tmp_path / "label.nii.gz"), "", {"label_info": label_info}
    )
    assert saved["label"] == "00_first"
    # Slicer's module shows the whole answer under "Show details".
    moved = [n for n, v in enumerate(params["label_names"].values(), 1) if n != v]
    assert bool(saved["changes"]) == bool(moved)
    back = client.download_label("00_first", "final")
    np.testing.assert_array_equal(from_sitk(sitk.ReadImage(back)), from_sitk(mask))
    assert client.next_sample("first", {}).get("id") != "00_first"
    assert (
        client.datastore()["objects"]["00_first"]["labels"]["final"]["info"]["client_id"]
        == "user-xyz"
    )


def test_the_client_uploads_a_scan_and_uses_a_session(
    client: Any, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "new.nii.gz"
    write_ct(path, small_ct(shape=(40, 36, 22)))
    assert client.upload_image(str(path), "from_slicer")["image"] == "from_slicer"
    session_id = client.create_session(str(path))["session_id"]
    assert client.get_session(session_id)["name"] == session_id
    by_session, _ = client.infer("organnet25d", "from_slicer", {}, session_id=session_id)
    by_session = from_sitk(sitk.ReadImage(by_session))
    by_file, _ = client.infer("organnet25d", "from_slicer", {}, file=str(path))
    np.testing.assert_array_equal(from_sitk(sitk.ReadImage(by_file)), by_session)
    client.remove_session(session_id)


def test_the_client_gets_the_reason_for_a_refused_label(
    module: ModuleType, client: Any, server: Server, tmp_path: Path
) -> None:
    put_case(server, "refusing")
    write_label(tmp_path / "label.nii.gz", two_organs(small_ct().grid))
    info = [{"name": "GTV", "idx": 1}, {"name": "Brainstem", "idx": 4}]
    with pytest.raises(module.MONAILabelClientException) as refused:
        client.save_label("refusing", str(tmp_path / "label.nii.gz"), "", {"label_info": info})
    assert "'GTV' is not an organ of this server" in refused.value.msg


def test_the_client_asks_for_training_when_none_runs(client: Any) -> None:
    assert client.train_status(check_if_running=True) is False


def test_the_client_corrects_an_organ_by_clicks_and_scribbles(
    client: Any, server: Server, tmp_path: Path
) -> None:
    grid = put_case(server, "01_clicks")
    options = {"result_extension": ".nrrd", "result_dtype": "uint8"}
    clicks = {"label": "Brainstem", "foreground": [[20, 15, 10]], "background": [[8, 15, 10]]}
    file, params = client.infer("organnet25d_clicks", "01_clicks", {**options, **clicks})
    mask = from_sitk(sitk.ReadImage(file))
    assert (mask[20, 15, 10], mask[8, 15, 10]) == (1, 0)
    assert params["label_names"] == {"Brainstem": 1}

    drawn = two_organs(grid)
    drawn.array[20:24, 6, 5] = 9
    write_label(tmp_path / "scribbles.nii.gz", drawn)
    scribbles = {
        "selected_label_name": "Parotid_L",
        "roi": [],
        "label_info": [{"name": "Parotid_L", "id": 4}, {"name": "foreground_scribbles", "id": 9}],
    }
    file, params = client.infer(
        "organnet25d_scribbles",
        "01_clicks",
        {**options, **scribbles},
        str(tmp_path / "scribbles.nii.gz"),
    )
    mask = from_sitk(sitk.ReadImage(file))
    assert mask[20:24, 6, 5].all()
    assert mask[16:20, 4:9, 2:8].all()
    assert params["changed_vox"] == int(mask.sum()) - 4 * 5 * 6
