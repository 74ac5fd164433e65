"""Tests of the catalog of series that can be contoured, with a real Orthanc."""

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from lib.dicom.ct_writer import write_ct_series
from lib.errors import DatastoreError, PacsError, ScanError
from lib.pacs.client import Pacs
from lib.pacs.orthanc import Orthanc
from lib.pacs.series_catalog import SeriesCatalog, SeriesRecords
from lib.storage.database import Database
from tests.pacs.orthancs import orthanc, put_ct
from tests.phantoms import make_ct


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "pacs") as running:
        yield running


def open_catalog(server: Orthanc, folder: Path) -> SeriesCatalog:
    database = Database(folder / "workflow.sqlite")
    return SeriesCatalog(SeriesRecords(database, server.dicomweb_url), Pacs(server.dicomweb_url))


def refresh_and_check(catalog: SeriesCatalog) -> SeriesCatalog:
    catalog.refresh()
    while catalog.check_next():
        pass
    return catalog


def put_changed(server: Orthanc, folder: Path, **values: object) -> str:
    """Store a series whose slices have other attributes, and return its UID."""
    uid = write_ct_series(make_ct(), folder, patient_id=folder.name)
    for file in folder.glob("*.dcm"):
        header = pydicom.dcmread(file)
        for keyword, value in values.items():
            setattr(header, keyword, value)
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        header.save_as(file)
    server.upload(sorted(folder.glob("*.dcm")))
    return uid


def test_a_ct_is_listed_with_its_patient_and_uids(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct", patient_id="pt_1")
    catalog = refresh_and_check(open_catalog(server, tmp_path))
    about = catalog.images()[uid]
    assert about["PatientID"] == "pt_1"
    assert about["SeriesInstanceUID"] == uid
    assert about["StudyInstanceUID"] == catalog.require(uid).study_uid
    assert not catalog.refused()


def test_a_new_series_is_listed_after_the_next_refresh(server: Orthanc, tmp_path: Path) -> None:
    catalog = refresh_and_check(open_catalog(server, tmp_path))
    before = catalog.revision
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    assert set(refresh_and_check(catalog).images()) == {uid}
    assert catalog.revision != before
    unchanged = catalog.revision
    assert refresh_and_check(catalog).revision == unchanged


def test_a_series_with_a_gap_is_refused_by_name(server: Orthanc, tmp_path: Path) -> None:
    uid = write_ct_series(make_ct(), tmp_path / "ct", patient_id="gap")
    server.upload(f for f in (tmp_path / "ct").glob("*.dcm") if f.name != "ct_0005.dcm")
    catalog = refresh_and_check(open_catalog(server, tmp_path))
    assert not catalog.images()
    assert f"{uid}: 1 slice missing" in catalog.refused()[uid]
    with pytest.raises(ScanError, match="1 slice missing"):
        catalog.require(uid)


def test_a_refused_series_that_was_completed_is_listed(server: Orthanc, tmp_path: Path) -> None:
    uid = write_ct_series(make_ct(), tmp_path / "ct", patient_id="gap")
    files = sorted((tmp_path / "ct").glob("*.dcm"))
    server.upload(files[:5] + files[6:])
    catalog = refresh_and_check(open_catalog(server, tmp_path))
    assert uid in catalog.refused()
    server.upload(files[5:6])
    refresh_and_check(catalog)
    assert uid in catalog.images()
    assert not catalog.refused()


def test_localizers_and_captures_are_ignored(server: Orthanc, tmp_path: Path) -> None:
    localizer = put_changed(server, tmp_path / "l", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    capture = put_changed(server, tmp_path / "c", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    put_changed(server, tmp_path / "m", Modality="MR")
    catalog = refresh_and_check(open_catalog(server, tmp_path))
    assert not catalog.images()
    assert not catalog.refused()
    for uid in (localizer, capture):
        with pytest.raises(DatastoreError, match="no such CT series"):
            catalog.require(uid)


def test_duplicate_slices_are_refused(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    for number, file in enumerate((tmp_path / "ct").glob("*.dcm")):
        header = pydicom.dcmread(file)
        header.SOPInstanceUID = pydicom.uid.UID(f"1.2.3.{number}")
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.save_as(file)
    server.upload((tmp_path / "ct").glob("*.dcm"))
    assert (
        "lie at the same position"
        in refresh_and_check(open_catalog(server, tmp_path)).refused()[uid]
    )


def test_a_series_in_two_studies_is_refused(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    for file in (tmp_path / "ct").glob("*.dcm"):
        header = pydicom.dcmread(file)
        header.StudyInstanceUID, header.PatientID = "1.2.3.4", "another patient"
        header.save_as(file)
    server.upload((tmp_path / "ct").glob("*.dcm"))
    catalog = refresh_and_check(open_catalog(server, tmp_path))
    assert not catalog.images()
    assert "in 2 studies" in catalog.refused()[uid]


def test_known_series_are_listed_without_the_pacs(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    refresh_and_check(open_catalog(server, tmp_path))
    server.kill()
    reopened = open_catalog(server, tmp_path)
    assert set(reopened.images()) == {uid}
    with pytest.raises(PacsError, match="cannot be reached"):
        reopened.refresh()
    assert set(reopened.images()) == {uid}


def test_a_series_that_the_pacs_no_longer_lists_is_removed(server: Orthanc, tmp_path: Path) -> None:
    put_ct(server, make_ct(), tmp_path / "ct")
    catalog = refresh_and_check(open_catalog(server, tmp_path))
    server.kill()
    empty = Orthanc(tmp_path / "empty", server.port)
    with empty:
        assert not refresh_and_check(catalog).images()
