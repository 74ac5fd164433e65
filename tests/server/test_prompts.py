"""Clicks and scribbles: our own route, and the requests of MONAI Label's module for 3D Slicer."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.imaging.scans import read_label, write_label
from lib.imaging.volumes import LabelVolume
from tests.server.running import Server, parts, put_case, small_ct

pytestmark = pytest.mark.server

CASE = "clicked"
CLICK = (20, 15, 10)
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}


@pytest.fixture(scope="module")
def case(server: Server) -> str:
    put_case(server, CASE)
    return CASE


def prompt(*voxel: object) -> dict[str, Any]:
    """Return a click to add, as a client sends it."""
    return {"voxels": [list(voxel)]}


def refine(server: Server, case: str, *prompts: Any, **more: Any) -> Any:
    """Return the status and the answer to our own route."""
    body = {"organ": "Brainstem", "prompts": list(prompts), **more}
    answer = server.ask("POST", f"/organnet/prompts/{case}", json=body)
    return answer.status_code, answer.json()


def mask_of(answer: Any) -> "np.ndarray[tuple[int, int, int], np.dtype[np.bool_]]":
    """Return the mask of an answer on the whole scan of 40 x 36 x 24 voxels, bit by bit as documented."""
    (x, y, z), (nx, ny, nz) = answer["mask"]["start"], answer["mask"]["size"]
    data = base64.b64decode(answer["mask"]["bits"])
    whole = np.zeros((40, 36, 24), bool)
    for n in range(nx * ny * nz):
        i, j, k = n % nx, n // nx % ny, n // nx // ny
        whole[x + i, y + j, z + k] = data[n >> 3] >> (n & 7) & 1
    return whole


def slicer_infer(server: Server, task: str, params: Any, **files: Any) -> Any:
    form = {"params": json.dumps({**params, **SLICER})}
    return server.ask("POST", f"/infer/{task}?image={CASE}", data=form, files=files or {"no": b""})


def organ_of(answer: Any, folder: Path) -> Any:
    """Return the organ's mask and the parameters of an answer to Slicer."""
    assert answer.status_code == 200, answer.text
    found = parts(answer)
    (folder / "result.nrrd").write_bytes(found["image"][1])
    array, grid = read_label(folder / "result.nrrd", image_id=CASE, image_grid=None)
    assert grid.is_same_as(small_ct().grid)
    return array == 1, json.loads(found["params"][1])


def test_a_click_in_mm_or_as_an_index_changes_the_organ_there(server: Server, case: str) -> None:
    status, by_index = refine(server, case, {"add": True, "voxels": [CLICK]})
    assert status == 200, by_index
    grid = by_index["grid"]
    position = np.array(grid["origin_mm"]) + np.array(CLICK) @ np.array(grid["axes_mm"])
    # The phantom's first voxel is at (-10.25, -35.5, 120.75) mm LPS; voxels measure 1.5 x 2 x 3 mm.
    np.testing.assert_allclose(position, (-10.25 + 30, -35.5 + 30, 120.75 + 30))
    _, by_position = refine(server, case, {"add": True, "points_mm": [position.tolist()]})
    assert by_position["mask"] == by_index["mask"]
    assert (by_position["was_kept"], by_index["organ"]) == (True, "Brainstem")
    assert mask_of(by_index)[CLICK]
    _, removed = refine(server, case, {"add": False, "voxels": [CLICK]})
    assert not mask_of(removed)[CLICK]


def test_a_drawn_organ_is_corrected(server: Server, case: str) -> None:
    bits = base64.b64encode(np.packbits(np.ones(4 * 4 * 4, bool)).tobytes()).decode()
    drawn = {"start": [4, 4, 4], "size": [4, 4, 4], "bits": bits}
    status, answer = refine(
        server, case, {"add": False, "voxels": [[7, 7, 7]]}, drawn=drawn, overwrite=True
    )
    assert status == 200, answer
    mask = mask_of(answer)
    assert not mask[7, 7, 7]
    assert mask[4, 4, 4]
    assert mask.sum() <= 4 * 4 * 4 - 1
    assert answer["changed_vox"] == 4 * 4 * 4 - mask.sum()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"organ": "Heart", "prompts": [prompt(*CLICK)]}, 400, "'Heart'"),
        ({"organ": "Brainstem", "prompts": []}, 400, "no click and no scribble"),
        ({"organ": "Brainstem", "prompts": [prompt(40, 0, 0)]}, 400, "40 x 36 x 24"),
        ({"organ": "Brainstem", "prompts": [{"points_mm": [[1e9, 0, 0]]}]}, 400, "outside"),
        ({"organ": "Brainstem", "prompts": [prompt(*CLICK)] * 101}, 400, "at most 100"),
        ({"organ": "Brainstem", "prompts": [{"add": True}]}, 400, "either points_mm or voxels"),
        ({"organ": "Brainstem", "prompts": [prompt(0.5, 0, 0)]}, 422, "integer"),
        ({"organ": "Brainstem", "prompts": [prompt(10**30, 0, 0)]}, 422, "less than"),
        ({"organ": "Brainstem", "prompts": [], "more": 1}, 422, "not permitted"),
        (
            {
                "organ": "Brainstem",
                "prompts": [prompt(*CLICK)],
                "drawn": {"start": [0, 0, 0], "size": [9, 9, 9], "bits": "AAAA"},
            },
            400,
            "3 bytes for 9 x 9 x 9 voxels; 92 expected",
        ),
    ],
)
def test_bad_prompts_are_refused(
    server: Server, case: str, body: Any, status: int, message: str
) -> None:
    answer = server.ask("POST", f"/organnet/prompts/{case}", json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.text


def test_an_unknown_image_is_not_found(server: Server) -> None:
    assert refine(server, "nothing", {"voxels": [CLICK]})[0] == 404


def test_slicer_finds_both_tasks(server: Server) -> None:
    models = server.ask("GET", "/info/").json()["models"]
    clicks, scribbles = models["organnet25d_clicks"], models["organnet25d_scribbles"]
    # With labels, Slicer would hide its clicks to remove.
    assert (clicks["type"], clicks["labels"], clicks["dimension"]) == ("deepedit", {}, 3)
    assert scribbles["type"] == "scribbles"


def test_slicers_clicks_correct_the_whole_organ(server: Server, case: str, tmp_path: Path) -> None:
    params: dict[str, Any] = {"label": "Brainstem", "foreground": [], "background": []}
    before, _ = organ_of(slicer_infer(server, "organnet25d_clicks", params), tmp_path)
    removed = np.argwhere(before)[0].tolist() if before.any() else [39, 35, 23]
    params = {**params, "foreground": [list(CLICK)], "background": [removed]}
    after, about = organ_of(slicer_infer(server, "organnet25d_clicks", params), tmp_path)
    assert after[CLICK]
    assert not after[tuple(removed)]
    assert about["label_names"] == {"Brainstem": 1}
    assert about["changed_vox"] == (after != before).sum()


def put_scribbles(folder: Path) -> Path:
    """Write what Slicer sends: a parotid (2) with a stroke to remove (4), and one to add (3) beside it."""
    array = np.zeros((40, 36, 24), np.uint8)
    array[10:20, 10:20, 8:14] = 2
    array[12, 12:18, 10] = 4
    array[24, 12:18, 10] = 3
    path = folder / "scribbles.nii.gz"
    write_label(path, LabelVolume(array, small_ct().grid, {}))
    return path


LABEL_INFO = [
    {"name": "Brainstem", "id": 1},
    {"name": "Parotid_L", "id": 2},
    {"name": "foreground_scribbles", "id": 3},
    {"name": "background_scribbles", "id": 4},
]


@pytest.mark.parametrize("roi", [[], [0, 22, 35, 0, 0, 23]])
def test_slicers_scribbles_correct_the_drawn_organ(
    server: Server, case: str, tmp_path: Path, roi: list[int]
) -> None:
    params = {"label_info": LABEL_INFO, "selected_label_name": "Parotid_L", "roi": roi}
    label = put_scribbles(tmp_path).read_bytes()
    mask, about = organ_of(
        slicer_infer(server, "organnet25d_scribbles", params, label=("scribbles.nii.gz", label)),
        tmp_path,
    )
    assert not mask[12, 12:18, 10].any()
    assert mask[19, 10:20, 13].all()
    assert mask[24, 12:18, 10].all() == (not roi)
    assert not mask[23:].any() or not roi
    assert about["label_names"] == {"Parotid_L": 1}


@pytest.mark.parametrize(
    ("task", "params", "message"),
    [
        ("organnet25d_clicks", {"label": "Segment_1"}, "'Segment_1' is not a known organ"),
        ("organnet25d_clicks", {"label": "Lung_L"}, "does not contour this organ"),
        ("organnet25d_clicks", {"label": "Brainstem", "foreground": [[1, 2]]}, "[i, j, k]"),
        ("organnet25d_clicks", {"label": "Brainstem", "foreground": "x"}, "[i, j, k]"),
        ("organnet25d_clicks", {"label": "Brainstem", "foreground": [[99, 0, 0]]}, "outside"),
        ("organnet25d_clicks", {"label": "Brainstem", "save_label": True}, "save_label"),
        ("organnet25d_scribbles", {"selected_label_name": "Brainstem"}, "no scribbles"),
    ],
)
def test_slicers_bad_requests_are_refused(
    server: Server, case: str, task: str, params: Any, message: str
) -> None:
    answer = slicer_infer(server, task, params)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["detail"]


def test_scribbles_without_names_are_refused(server: Server, case: str, tmp_path: Path) -> None:
    answer = slicer_infer(
        server,
        "organnet25d_scribbles",
        {"selected_label_name": "Brainstem", "label_info": 3},
        label=("scribbles.nii.gz", put_scribbles(tmp_path).read_bytes()),
    )
    assert answer.status_code == 400
    assert "label_info" in answer.json()["detail"]
