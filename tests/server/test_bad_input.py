"""Bad scans, labels and requests, uploaded or in the studies folder: each is refused with a reason."""

import json
import re
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import requests

from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import LabelVolume
from tests.phantoms import make_grid
from tests.server.bad_scans import BAD_FILES, BAD_FOLDERS, BadScan
from tests.server.running import TINY, Server, put_case, small_ct, two_organs

pytestmark = pytest.mark.server

ALL = [*BAD_FOLDERS, *BAD_FILES]


def named(scan: BadScan) -> str:
    return scan.name


def as_upload(path: Path) -> tuple[str, bytes]:
    """Return name and content of an upload: a file unchanged, a DICOM folder as a zip."""
    if path.is_file():
        return path.name, path.read_bytes()
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in path.iterdir():
            archive.write(file, f"series/{file.name}")
    return f"{path.name}.zip", packed.getvalue()


def require_refusal(answer: requests.Response, status: int, says: str) -> None:
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert re.search(says, detail), detail


@pytest.mark.parametrize("scan", ALL, ids=named)
def test_bad_scan_is_refused_as_an_upload(server: Server, tmp_path: Path, scan: BadScan) -> None:
    sent = {"file": as_upload(scan.write(tmp_path))}
    before = server.disk()
    require_refusal(server.ask("PUT", "/datastore/?image=bad", files=sent), 422, scan.says)
    assert server.disk() == before
    assert "bad" not in server.images()


@pytest.mark.parametrize("scan", ALL, ids=named)
def test_bad_scan_is_refused_by_infer_and_session(
    server: Server, tmp_path: Path, scan: BadScan
) -> None:
    sent = as_upload(scan.write(tmp_path))
    before = server.disk()
    by_file = server.ask("POST", "/infer/organnet25d", files={"file": sent})
    require_refusal(by_file, 422, scan.says)
    by_session = server.ask("PUT", "/session/", files=[("files", sent)])
    require_refusal(by_session, 422, scan.says)
    assert server.disk() == before


@pytest.mark.parametrize("scan", ALL, ids=named)
def test_bad_scan_in_the_studies_folder_is_refused_by_infer(
    server: Server, tmp_path: Path, scan: BadScan
) -> None:
    path = scan.write(tmp_path)
    image_id = path.name.partition(".")[0]
    path = Path(shutil.move(path, server.studies))
    try:
        contents = server.ask("GET", "/datastore/?output=all").json()
        assert image_id in {*contents["objects"], *contents["refused"]}
        before = server.disk()
        require_refusal(server.ask("POST", f"/infer/organnet25d?image={image_id}"), 422, scan.says)
        label = {"label": ("label.nii.gz", label_file(tmp_path))}
        refused = server.ask("PUT", f"/datastore/label?image={image_id}", files=label)
        require_refusal(refused, 422, scan.says)
        assert server.disk() == before
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def label_file(folder: Path, label: LabelVolume | None = None) -> bytes:
    path = folder / "label_to_send.nii.gz"
    write_label(path, label or two_organs(small_ct().grid))
    return path.read_bytes()


def strange_value(label: LabelVolume) -> LabelVolume:
    array = label.array.copy()
    array[0, 0, 0] = 99
    return LabelVolume(array, label.grid, TINY.labels)


def moved(label: LabelVolume) -> LabelVolume:
    affine = label.grid.affine_ras
    affine[0, 3] += 2.0
    return LabelVolume(
        label.array, type(label.grid).from_affine(label.grid.shape_vox, affine), TINY.labels
    )


def smaller(_label: LabelVolume) -> LabelVolume:
    grid = make_grid((20, 18, 12))
    return LabelVolume(np.ones(grid.shape_vox, np.uint8), grid, TINY.labels)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (strange_value, r"holds the values \[99\]"),
        (moved, "the label lies on .* the image on"),
        (smaller, "the label lies on 20 x 18 x 12"),
    ],
)
def test_bad_label_is_refused_and_the_previous_one_remains(
    server: Server, tmp_path: Path, change: object, says: str
) -> None:
    put_case(server, "keeps", is_labelled=True)
    assert "keeps" in server.images()
    assert callable(change)
    bad = label_file(tmp_path, change(two_organs(small_ct().grid)))
    before = server.disk()
    answer = server.ask(
        "PUT", "/datastore/label?image=keeps", files={"label": ("label.nii.gz", bad)}
    )
    require_refusal(answer, 422, says)
    assert server.disk() == before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("label.nii.gz", b"garbage", "no readable|damaged"),
        ("label.nii.gz", b"", "empty"),
        ("label.exe", b"MZ", "expected a file ending in"),
    ],
)
def test_a_file_that_is_not_a_label_is_refused(
    server: Server, name: str, content: bytes, says: str
) -> None:
    put_case(server, "keeps", is_labelled=True)
    assert "keeps" in server.images()
    before = server.disk()
    answer = server.ask("PUT", "/datastore/label?image=keeps", files={"label": (name, content)})
    require_refusal(answer, 422, says)
    assert server.disk() == before


def test_ct_sent_as_a_label_is_refused(server: Server, tmp_path: Path) -> None:
    put_case(server, "keeps", is_labelled=True)
    content = (server.studies / "keeps.nii.gz").read_bytes()
    answer = server.ask(
        "PUT", "/datastore/label?image=keeps", files={"label": ("l.nii.gz", content)}
    )
    require_refusal(answer, 422, "is it an image")


def test_label_with_an_unknown_organ_is_refused(server: Server, tmp_path: Path) -> None:
    put_case(server, "keeps", is_labelled=True)
    info = [{"name": "Brainstem", "idx": 1}, {"name": "GTV", "idx": 4}]
    answer = server.ask(
        "PUT",
        "/datastore/label?image=keeps",
        data={"params": json.dumps({"label_info": info})},
        files={"label": ("l.nii.gz", label_file(tmp_path))},
    )
    require_refusal(answer, 422, "'GTV' is not an organ of this server")


def test_another_scan_with_an_existing_id_is_refused(server: Server, tmp_path: Path) -> None:
    put_case(server, "taken")
    write_ct(tmp_path / "other.nii.gz", small_ct(shape=(40, 36, 25)))
    sent = {"file": ("other.nii.gz", (tmp_path / "other.nii.gz").read_bytes())}
    assert "taken" in server.images()
    before = server.disk()
    answer = server.ask("PUT", "/datastore/?image=taken", files=sent)
    require_refusal(answer, 409, "another scan has this id already")
    assert server.disk() == before


@pytest.mark.parametrize(
    ("method", "path", "given", "status", "says"),
    [
        ("POST", "/infer/organnet25d?image=unknown", {}, 404, "unknown: no such image"),
        ("POST", "/infer/deepedit?image=plain", {}, 404, "'deepedit': no such model"),
        ("POST", "/infer/organnet25d", {}, 400, "no image given"),
        ("POST", "/infer/organnet25d?image=plain", {"data": {"params": "{"}}, 400, "not JSON"),
        ("POST", "/infer/organnet25d?image=plain", {"data": {"params": "[1]"}}, 400, "JSON object"),
        (
            "POST",
            "/infer/organnet25d?image=plain",
            {"data": {"params": '{"result_extension": ".exe"}'}},
            400,
            "result_extension '.exe' is not one of",
        ),
        (
            "POST",
            "/infer/organnet25d?image=plain",
            {"data": {"params": '{"result_dtype": {"float64": 1}}'}},
            400,
            "result_dtype .* is not one of",
        ),
        (
            "POST",
            "/infer/organnet25d?image=plain",
            {"data": {"params": '{"overlap": NaN}'}},
            400,
            "NaN is not valid JSON",
        ),
        ("POST", "/activelearning/best", {"json": {}}, 404, "'best': no such strategy"),
        (
            "POST",
            "/activelearning/random",
            {"json": {"seed": "x"}},
            400,
            "seed: 'x' is not a number",
        ),
        ("POST", "/train/other", {"json": {}}, 404, "'other': unknown trainer"),
        ("POST", "/train/organnet25d", {"json": {"max_epochs": -1}}, 400, "max_epochs: -1 is not"),
        ("GET", "/datastore/label?label=plain&tag=final", {}, 404, "there is no label"),
        ("GET", "/datastore/label/info?label=no&tag=final", {}, 404, "no such image"),
        ("GET", "/datastore/image?image=unknown", {}, 404, "no such image"),
        ("GET", "/datastore/image/info?image=unknown", {}, 404, "no such image"),
        ("DELETE", "/datastore/?id=unknown", {}, 404, "no such image"),
        ("DELETE", "/datastore/label?id=plain&tag=final", {}, 404, "there is no label"),
        ("GET", "/session/not-a-uuid", {}, 404, "not a session id"),
        (
            "POST",
            "/infer/organnet25d?session_id=00000000-0000-1000-8000-000000000000",
            {},
            404,
            "not found, or expired",
        ),
    ],
)
def test_wrong_request_is_refused_with_a_reason(  # noqa: PLR0917 - pytest passes them by name
    server: Server, method: str, path: str, given: dict[str, object], status: int, says: str
) -> None:
    put_case(server, "plain")
    assert "plain" in server.images()
    before = server.disk()
    require_refusal(server.ask(method, path, **given), status, says)
    assert server.disk() == before
