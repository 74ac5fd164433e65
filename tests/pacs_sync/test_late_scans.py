"""Tests of contours that reach the PACS before all slices of their scan, with a real Orthanc."""

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from lib.dicom.ct_writer import write_ct_series
from lib.dicom.objects import Kind
from lib.pacs.orthanc import Orthanc
from tests.pacs.orthancs import orthanc, put_ct
from tests.pacs_sync.station import Station
from tests.pacs_sync.test_inbox import draw
from tests.phantoms import make_ct


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "pacs") as running:
        yield running


def slices_of(folder: Path) -> list[Path]:
    """Return the files of a series, from the feet to the head."""
    files = list(folder.glob("*.dcm"))
    return sorted(files, key=lambda f: float(pydicom.dcmread(f).ImagePositionPatient[2]))


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_an_object_refused_for_missing_slices_is_imported_later(
    server: Orthanc, tmp_path: Path, kind: Kind
) -> None:
    uid = write_ct_series(make_ct(), tmp_path / "ct", patient_id="late")
    draw(tmp_path / "ct", tmp_path / "drawn.dcm", kind=kind)
    files = slices_of(tmp_path / "ct")
    server.upload([*files[-8:], tmp_path / "drawn.dcm"])
    station = Station(tmp_path / "station", server.dicomweb_url).look().look()
    assert station.store.list_images() == [uid], "eight slices are a CT, too"
    (refused,) = station.pacs_sync.status()["refused_objects"]
    assert refused.image_id == uid
    looked_at = [row.looked_at for row in station.pacs_sync.objects.by_uid().values()]
    station.look()
    assert [row.looked_at for row in station.pacs_sync.objects.by_uid().values()] == looked_at
    server.upload(files[:-8])
    # The same holds after a restart of the server.
    station = Station(tmp_path / "station", server.dicomweb_url).look().look()
    assert [version.image_id for version in station.imported] == [uid]
    assert station.pacs_sync.status()["refused_objects"] == []


def test_an_object_refused_again_is_not_processed_each_time(
    server: Orthanc, tmp_path: Path
) -> None:
    write_ct_series(make_ct(), tmp_path / "ct", patient_id="late")
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    spoiled = pydicom.dcmread(tmp_path / "drawn.dcm")
    spoiled.SegmentSequence[0].SegmentLabel = "Tumour"
    spoiled.save_as(tmp_path / "drawn.dcm")
    files = slices_of(tmp_path / "ct")
    server.upload([*files[:10], tmp_path / "drawn.dcm"])
    station = Station(tmp_path / "station", server.dicomweb_url).look().look()
    server.upload(files[10:])
    for _ in range(3):
        station.look()
    assert len(station.quarantine.entries()) == 2, "once for ten slices, once for all"


def test_contours_wait_for_any_of_their_referenced_series(server: Orthanc, tmp_path: Path) -> None:
    uid = write_ct_series(make_ct(), tmp_path / "ct", patient_id="late")
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    dataset = pydicom.dcmread(tmp_path / "drawn.dcm")
    (own,) = dataset.ReferencedSeriesSequence
    for other in ("0.1", "2.999.999"):
        reference = pydicom.Dataset()
        reference.SeriesInstanceUID = other
        reference.ReferencedInstanceSequence = own.ReferencedInstanceSequence
        dataset.ReferencedSeriesSequence.append(reference)
    dataset.save_as(tmp_path / "drawn.dcm")
    server.upload([tmp_path / "drawn.dcm"])
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    put_ct(server, make_ct(), tmp_path / "unrelated", patient_id="unrelated")
    looked_at = [row.looked_at for row in station.pacs_sync.objects.by_uid().values()]
    station.look().look()
    assert [row.looked_at for row in station.pacs_sync.objects.by_uid().values()] == looked_at
    server.upload(slices_of(tmp_path / "ct"))
    station.look().look()
    assert [version.image_id for version in station.imported] == [uid]
