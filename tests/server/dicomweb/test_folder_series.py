"""OHIF over a studies folder: its DICOM series by DICOMweb, and contours that a viewer stores on them."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from lib.dicom.ct_writer import write_ct_series
from lib.errors import PacsError
from lib.imaging.scans import write_ct
from lib.pacs.orthanc import find_orthanc
from tests.server.running import Server, put_model, running, small_ct
from tests.waiting import wait_until

pytestmark = pytest.mark.server

KIND = 'multipart/related; type="application/dicom"; boundary=part-of-a-test'


@dataclass(frozen=True, slots=True)
class Clinic:
    """A server over a folder with a DICOM series, `patient`, and a NIfTI file, `volume`."""

    server: Server
    uid: str

    def get(self, path: str) -> Any:
        answer = self.server.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def store(self, content: bytes) -> Any:
        """Return the answer to an object that a viewer stores (STOW-RS)."""
        head = b"\r\n--part-of-a-test\r\nContent-Type: application/dicom\r\n\r\n"
        return self.server.ask(
            "POST",
            "/proxy/dicom/studies",
            data=head + content + b"\r\n--part-of-a-test--\r\n",
            headers={"Content-Type": KIND, "Accept": "application/dicom+json"},
        )


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    try:
        find_orthanc()
    except PacsError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("folder")
    (folder / "models").mkdir()
    put_model(folder / "models")
    uid = write_ct_series(small_ct("patient"), folder / "studies" / "patient", patient_id="p1")
    write_ct(folder / "studies" / "volume.nii.gz", small_ct("volume"))
    with running(folder, conf={"ohif_folder": "on"}) as server:
        started = Clinic(server, uid)
        wait_until(lambda: started.get("/organnet/series")["series"], "Orthanc has the series")
        yield started


def test_series_and_volume_files_of_the_folder_are_told_apart(clinic: Clinic) -> None:
    listed = clinic.get("/organnet/series")
    (series,) = listed["series"]
    assert (series["image"], series["series_uid"]) == ("patient", clinic.uid)
    assert (listed["refused"], listed["volume_files"]) == ({}, ["volume"])
    assert clinic.get(f"/organnet/series/{clinic.uid}") == series
    missing = clinic.server.ask("GET", "/organnet/series/1.2.3")
    assert missing.status_code == 404
    assert "no image of this server is this DICOM series" in missing.json()["detail"]


def test_the_viewer_finds_and_reads_the_series(clinic: Clinic) -> None:
    (study,) = clinic.get("/proxy/dicom/qido/studies?PatientID=p1")
    study_uid = study["0020000D"]["Value"][0]
    assert study_uid == clinic.get(f"/organnet/series/{clinic.uid}")["study_uid"]
    metadata = clinic.get(f"/proxy/dicom/wado/studies/{study_uid}/series/{clinic.uid}/metadata")
    assert len(metadata) == 24
    assert "127.0.0.1" not in str(study), "addresses are those of this server's proxy"
    # 503 where OHIF is not installed; 404 would say that it needs a PACS.
    assert clinic.server.ask("GET", "/ohif/").status_code in (200, 503)


def test_a_client_is_told_which_study_to_open(clinic: Clinic) -> None:
    info = clinic.get("/datastore/image/info?image=patient")
    series = clinic.get(f"/organnet/series/{clinic.uid}")
    assert (info["SeriesInstanceUID"], info["StudyInstanceUID"]) == (
        clinic.uid,
        series["study_uid"],
    )
    assert "StudyInstanceUID" not in clinic.get("/datastore/image/info?image=volume")


def test_contours_that_the_viewer_stores_are_the_label_of_the_folders_image(clinic: Clinic) -> None:
    contours = clinic.server.ask("POST", "/infer/organnet25d?image=patient&output=dicom_seg")
    assert contours.status_code == 200, contours.text
    answer = clinic.store(contours.content)
    assert answer.status_code == 200, answer.text
    (version,) = clinic.get("/organnet/labels/patient")
    assert (version["image"], version["source"]) == ("patient", "client")
    assert version["unchanged_from"] == version["model_version"]
    assert (clinic.server.studies / "labels" / "final" / "patient.nii.gz").is_file()
    assert clinic.get("/proxy/dicom/qido/series?Modality=SEG") == []


def test_other_objects_are_refused_as_the_copy_of_the_folder_is_no_archive(clinic: Clinic) -> None:
    other = clinic.server.studies.parent / "other"
    write_ct_series(small_ct("other"), other, patient_id="p2")
    answer = clinic.store(sorted(other.glob("*.dcm"))[0].read_bytes())
    assert answer.status_code == 502
    assert "this server's studies are in a folder" in answer.text


def test_a_series_that_is_added_or_removed_is_so_in_the_viewer_too(clinic: Clinic) -> None:
    added = clinic.server.studies / "added"
    uid = write_ct_series(small_ct("added"), added, patient_id="p3")
    query = "/proxy/dicom/qido/series?PatientID=p3"
    wait_until(
        lambda: [s["0020000E"]["Value"] for s in clinic.get(query)] == [[uid]],
        "the new series is found",
        context=clinic.server.end_of_log,
    )
    shutil.rmtree(added)
    wait_until(lambda: clinic.get(query) == [], "the series is gone")


def test_orthanc_ends_with_the_server(clinic: Clinic) -> None:
    def orthancs(process: psutil.Process) -> list[psutil.Process]:
        return [p for p in process.children(recursive=True) if "Orthanc" in p.name()]

    (orthanc,) = orthancs(psutil.Process(clinic.server.process.pid))
    clinic.server.process.kill()
    wait_until(lambda: not orthanc.is_running(), "Orthanc has ended")
