"""Series of DICOM files, in the studies folder and as clients send them."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from lib.dicom.ct_writer import write_ct_series
from lib.imaging.geometry import Grid, from_sitk
from lib.imaging.scans import read_ct, write_ct
from tests.server.bad_scans import series
from tests.server.running import Server, parts, small_ct

pytestmark = pytest.mark.server


def mask_of(answer: Any, folder: Path) -> sitk.Image:
    assert answer.status_code == 200, answer.text
    path = folder / "mask.nii.gz"
    path.write_bytes(parts(answer)["image"][1])
    return sitk.ReadImage(str(path))


def test_a_dicom_folder_and_its_nifti_give_the_same_contours(
    server: Server, tmp_path: Path
) -> None:
    write_ct_series(small_ct(), server.studies / "as_dicom", patient_id="x")
    write_ct(server.studies / "as_nifti.nii.gz", read_ct(server.studies / "as_dicom"))
    masks = [
        mask_of(server.ask("POST", f"/infer/organnet25d?image={name}"), tmp_path)
        for name in ("as_dicom", "as_nifti")
    ]
    assert Grid.of_sitk(masks[0]).is_same_as(Grid.of_sitk(masks[1]))
    np.testing.assert_array_equal(from_sitk(masks[0]), from_sitk(masks[1]))


def test_a_dicom_folder_is_downloaded_as_nifti(server: Server, tmp_path: Path) -> None:
    write_ct_series(small_ct(), server.studies / "download", patient_id="x")
    answer = server.ask("GET", "/datastore/image?image=download")
    assert 'filename="download.nii.gz"' in answer.headers["content-disposition"]
    (tmp_path / "download.nii.gz").write_bytes(answer.content)
    downloaded = read_ct(tmp_path / "download.nii.gz")
    np.testing.assert_array_equal(
        downloaded.array_hu, read_ct(server.studies / "download").array_hu
    )
    assert downloaded.grid.is_same_as(read_ct(server.studies / "download").grid)


def test_slicer_gets_no_path_of_a_dicom_folder(server: Server) -> None:
    write_ct_series(small_ct(), server.studies / "000_dicom", patient_id="x")
    sample = server.ask("POST", "/activelearning/first", json={}).json()
    assert sample["id"] == "000_dicom"
    assert "path" not in sample
    assert sample["name"] == "000_dicom.nii.gz"
    assert server.ask("DELETE", "/datastore/?id=000_dicom").status_code == 200
    assert "000_dicom" not in server.images()


def test_a_session_is_made_of_the_files_of_a_series(server: Server, tmp_path: Path) -> None:
    files = [("files", (path.name, path.read_bytes())) for path in series(tmp_path / "series")]
    made = server.ask("PUT", "/session/", files=files)
    assert made.status_code == 200, made.text
    session_id = made.json()["session_id"]
    answer = server.ask("POST", f"/infer/organnet25d?session_id={session_id}")
    mask = mask_of(answer, tmp_path)
    assert mask.GetSize() == small_ct().grid.shape_vox
    image = server.ask("GET", f"/session/{session_id}?image=true")
    assert image.headers["content-disposition"].endswith('.nii.gz"')
    assert server.ask("DELETE", f"/session/{session_id}").status_code == 200


def test_a_zipped_series_is_uploaded_and_contoured(server: Server, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in series(tmp_path / "series"):
            archive.write(path, f"DICOM/ST0/{path.name}")
    sent = {"file": ("3: NECK.zip", packed.getvalue())}
    params = {"params": json.dumps({"client_id": "me"})}
    answer = server.ask("PUT", "/datastore/", params={"image": "3: NECK"}, files=sent, data=params)
    assert (answer.status_code, answer.json()) == (200, {"image": "3: NECK"})
    mask = mask_of(server.ask("POST", "/infer/organnet25d", params={"image": "3: NECK"}), tmp_path)
    assert mask.GetSize() == small_ct().grid.shape_vox


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json"])
def test_pages_that_are_not_removed_are_served(server: Server, path: str) -> None:
    assert server.ask("GET", path).status_code == 200
