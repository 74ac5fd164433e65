"""SEG and RTSTRUCT over HTTP, of the model's contours and of submitted labels."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests

from lib.dicom.ct_writer import write_ct_series
from lib.dicom.objects import read_object
from lib.dicom.structures import label_from_structures
from lib.imaging.dicom_series import read_headers
from lib.imaging.geometry import reordered_onto
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_label, write_ct, write_label
from lib.imaging.volumes import LabelVolume
from tests.dicom.other_readers import errors_of
from tests.server.bad_scans import series
from tests.server.running import TINY, Server, parts, put_case, small_ct, two_organs

pytestmark = pytest.mark.server

KINDS = [("dicom_seg", "seg", "SEG"), ("rtstruct", "rtstruct", "RTSTRUCT")]


def saved(answer: requests.Response, folder: Path) -> Path:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    path = folder / "answer.dcm"
    path.write_bytes(answer.content)
    assert errors_of(path) == []
    return path


def voxels(path: Path, scan: Path) -> LabelArray:
    """Return the label in a DICOM object, with the values of the server's organs, on the scan's grid."""
    headers, grid = read_headers(scan, image_id="x")
    return label_from_structures(
        read_object(path, headers, grid, image_id="x"), TINY.labels, grid, "x"
    ).array


def put_series(server: Server, image_id: str) -> Path:
    folder = server.studies / image_id
    write_ct_series(small_ct(), folder, patient_id="x")
    return folder


def submit(server: Server, image_id: str, folder: Path, *, shift: int = 0) -> LabelVolume:
    """Submit a label for a DICOM folder as Slicer would, and return it on the folder's grid."""
    _, grid = read_headers(server.studies / image_id, image_id="x")
    label = two_organs(grid)
    label = LabelVolume(np.roll(label.array, shift, 0), grid, TINY.labels)
    write_label(folder / "sent.nii.gz", label)
    answer = server.ask(
        "PUT",
        f"/datastore/label?image={image_id}",
        data={"params": json.dumps({"client_id": "slicer"})},
        files={"label": ("label.nii.gz", (folder / "sent.nii.gz").read_bytes())},
    )
    assert answer.status_code == 200, answer.text
    return label


@pytest.mark.parametrize(("output", "kind", "modality"), KINDS)
def test_contours_of_the_model_are_returned_as_a_dicom_object(
    server: Server, tmp_path: Path, output: str, kind: str, modality: str
) -> None:
    image = f"infer_{kind}"
    scan = put_series(server, image)
    as_nifti = server.ask("POST", f"/infer/organnet25d?image={image}")
    (tmp_path / "mask.nii.gz").write_bytes(parts(as_nifti)["image"][1])
    mask, grid = read_label(tmp_path / "mask.nii.gz", image_id="x", image_grid=None)
    assert mask.any()
    before = server.disk()
    answer = server.ask("POST", f"/infer/organnet25d?image={image}&output={output}")
    path = saved(answer, tmp_path)
    assert answer.headers["content-disposition"] == f'attachment; filename="{image}.{kind}.dcm"'
    expected = reordered_onto(mask, grid, read_headers(scan, image_id="x")[1], image_id="x")
    np.testing.assert_array_equal(voxels(path, scan), expected)
    dataset = pydicom.dcmread(path)
    assert dataset.Modality == modality
    version = server.ask("GET", "/info/").json()["models"]["organnet25d"]["version"]
    if modality == "SEG":
        segment = dataset.SegmentSequence[0]
        algorithm_version = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
        assert (segment.SegmentAlgorithmType, algorithm_version) == ("AUTOMATIC", version)
    else:
        roi = dataset.StructureSetROISequence[0]
        assert roi.ROIGenerationAlgorithm == "AUTOMATIC"
        assert roi.ROIGenerationDescription == f"OrganNet2.5D {version}"
    assert server.disk() == before, "no file is left behind"


def test_an_uploaded_series_is_answered_with_a_dicom_object(server: Server, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in series(tmp_path / "series"):
            archive.write(path, f"DICOM/{path.name}")
    sent = {"file": ("Ä b.zip", packed.getvalue())}
    answer = server.ask("POST", "/infer/organnet25d?output=dicom_seg", files=sent)
    assert answer.headers["content-disposition"] == 'attachment; filename="__b.seg.dcm"'
    assert voxels(saved(answer, tmp_path), tmp_path / "series").any()


def test_a_session_of_a_series_is_answered_with_a_dicom_object(
    server: Server, tmp_path: Path
) -> None:
    files = [("files", (path.name, path.read_bytes())) for path in series(tmp_path / "series")]
    session_id = server.ask("PUT", "/session/", files=files).json()["session_id"]
    answer = server.ask("POST", f"/infer/organnet25d?session_id={session_id}&output=rtstruct")
    assert voxels(saved(answer, tmp_path), tmp_path / "series").any()
    assert server.ask("DELETE", f"/session/{session_id}").status_code == 200


@pytest.mark.parametrize("output", ["dicom_seg", "rtstruct"])
def test_an_image_that_is_not_a_series_has_no_dicom_object(server: Server, output: str) -> None:
    write_ct(server.studies / "no_series.nii.gz", small_ct())
    answer = server.ask("POST", f"/infer/organnet25d?image=no_series&output={output}")
    assert answer.status_code == 422
    assert "no_series: the image is not a DICOM series" in answer.json()["detail"]


def test_the_uncertainty_map_is_not_returned_as_dicom(server: Server) -> None:
    put_series(server, "with_map")
    params = {"params": json.dumps({"deep": True, "uncertainty_map": True})}
    path = "/infer/organnet25d?image=with_map&output=dicom_seg"
    answer = server.ask("POST", path, data=params)
    assert answer.status_code == 400
    assert "uncertainty_map: the map cannot be returned as DICOM" in answer.json()["detail"]


@pytest.mark.parametrize(("_output", "kind", "modality"), KINDS)
def test_a_label_is_exported_as_it_was_submitted(
    server: Server, tmp_path: Path, _output: str, kind: str, modality: str
) -> None:
    image = f"export_{kind}"
    scan = put_series(server, image)
    first = submit(server, image, tmp_path)
    second = submit(server, image, tmp_path, shift=2)
    answer = server.ask("GET", f"/organnet/export/{image}?format={kind}")
    path = saved(answer, tmp_path)
    shown = answer.headers["content-disposition"]
    assert shown == f'attachment; filename="{image}-final-2.{kind}.dcm"'
    np.testing.assert_array_equal(voxels(path, scan), second.array)
    dataset = pydicom.dcmread(path)
    assert (dataset.Modality, dataset.SeriesDescription) == (modality, "OrganNet Label final 2")
    again = server.ask("GET", f"/organnet/export/{image}?format={kind}&tag=final&version=2")
    same = pydicom.dcmread(io.BytesIO(again.content))
    assert same.SOPInstanceUID == dataset.SOPInstanceUID, "repeated requests return the same object"
    older = server.ask("GET", f"/organnet/export/{image}?format={kind}&version=1")
    path = saved(older, tmp_path)
    np.testing.assert_array_equal(voxels(path, scan), first.array)
    assert pydicom.dcmread(path).SOPInstanceUID != dataset.SOPInstanceUID


def test_a_label_is_exported_as_a_volume_on_the_scans_voxels(
    server: Server, tmp_path: Path
) -> None:
    image = "export_nrrd"
    put_series(server, image)
    put_case(server, "volume", is_labelled=True)
    submitted = submit(server, image, tmp_path)
    answer = server.ask("GET", f"/organnet/export/{image}?format=nrrd")
    assert answer.headers["content-disposition"] == f'attachment; filename="{image}-final-1.nrrd"'
    path = tmp_path / "label.nrrd"
    path.write_bytes(answer.content)
    array, _ = read_label(path, image_id=image, image_grid=submitted.grid)
    np.testing.assert_array_equal(array, submitted.array)
    assert server.ask("GET", "/organnet/export/volume?format=nrrd").status_code == 200


def test_a_label_that_cannot_be_exported_is_refused_with_the_reason(
    server: Server, tmp_path: Path
) -> None:
    put_series(server, "unlabelled")
    put_case(server, "nifti_label", is_labelled=True)
    put_series(server, "emptied")
    _, grid = read_headers(server.studies / "emptied", image_id="x")
    empty = LabelVolume(np.zeros(grid.shape_vox, np.uint8), grid, TINY.labels)
    write_label(tmp_path / "empty.nii.gz", empty)
    sent = {"label": ("label.nii.gz", (tmp_path / "empty.nii.gz").read_bytes())}
    put = server.ask("PUT", "/datastore/label?image=emptied", data={"params": "{}"}, files=sent)
    assert put.status_code == 200, put.text
    for path, status, says in (
        ("unknown", 404, "unknown: no such image"),
        ("unlabelled", 404, "unlabelled: there is no label with the tag 'final'"),
        ("unlabelled?tag=../x", 404, "cannot name a set of labels"),
        ("nifti_label", 422, "nifti_label: the image is not a DICOM series"),
        ("nifti_label?version=7", 404, "nifti_label: label 'final' has no version 7"),
        ("emptied", 422, "emptied: the label contains no organ"),
    ):
        answer = server.ask("GET", f"/organnet/export/{path}")
        assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert server.ask("GET", "/organnet/export/unlabelled?format=pdf").status_code == 422


def test_a_label_of_an_open_reader_study_is_not_exported(server: Server, tmp_path: Path) -> None:
    put_series(server, "blind")
    opened = server.ask("POST", "/organnet/readers/blind", json={"readers": 2})
    assert opened.status_code == 200, opened.text
    submit(server, "blind", tmp_path)
    answer = server.ask("GET", "/organnet/export/blind?format=seg")
    assert answer.status_code == 409
    assert "1 of 2 readers of this reader study have submitted" in answer.json()["detail"]
