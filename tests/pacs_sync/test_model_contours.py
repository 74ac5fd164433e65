"""Tests that contours of a model do not come back from a real Orthanc as a person's label."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.objects import Kind, write_object
from lib.imaging.dicom_series import read_headers
from lib.imaging.scans import read_ct, read_label, write_label
from lib.imaging.volumes import LabelVolume
from lib.pacs.orthanc import Orthanc
from lib.pacs_sync.dicom_labels import MODEL, provenance_of
from lib.storage.tables import LabelVersion
from tests.pacs.orthancs import orthanc, put_ct
from tests.pacs_sync.station import LABELS, Station
from tests.phantoms import make_ct

KINDS = pytest.mark.parametrize("kind", ["seg", "rtstruct"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "pacs") as running:
        yield running


def blocks(series: Path) -> LabelVolume:
    ct = read_ct(series)
    array = np.zeros(ct.grid.shape_vox, np.uint8)
    array[2:5, 4:9, 2:8] = 1
    array[6:9, 4:9, 2:8] = 3
    return LabelVolume(array, ct.grid, LABELS)


def submit(station: Station, uid: str, tag: str, source: str) -> LabelVersion:
    """Submit a label as the server does."""
    file = station.folder / "kept.nii.gz"
    write_label(file, blocks(station.store.require_image(uid)))
    return station.store.submissions.submit(uid, tag, file, {"author": "ada"}, source=source)


def export(station: Station, version: LabelVersion, kind: Kind, file: Path) -> None:
    """Write a version as the server sends it to the PACS."""
    uid = version.image_id
    headers, grid = read_headers(station.store.require_image(uid), image_id=uid)
    path = station.history.path(version.digest)
    array, label_grid = read_label(path, image_id=uid, image_grid=grid)
    label = LabelVolume(array, label_grid, LABELS)
    write_object(kind, file, label, headers, provenance_of(version, kind, uid), image_id=uid)


@KINDS
@pytest.mark.parametrize("tag", ["original", "final", "second-reading"])
def test_an_object_of_this_server_is_not_imported_for_any_tag(
    server: Orthanc, tmp_path: Path, kind: Kind, tag: str
) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    version = submit(station, uid, tag, "client")
    export(station, version, kind, tmp_path / "sent.dcm")
    station.pacs_sync.store_object((tmp_path / "sent.dcm").read_bytes())
    station.look()
    assert not station.imported
    assert [row.verdict for row in station.pacs_sync.objects.by_uid().values()] == ["ours"]


@KINDS
def test_an_unreviewed_prediction_is_refused(server: Orthanc, tmp_path: Path, kind: Kind) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    headers, _ = read_headers(tmp_path / "ct", image_id=uid)
    about = ObjectProvenance(model=MODEL, model_version="1", is_automatic=True)
    write_object(kind, tmp_path / "p.dcm", blocks(tmp_path / "ct"), headers, about, image_id=uid)
    server.upload([tmp_path / "p.dcm"])
    station = Station(tmp_path / "station", server.dicomweb_url).look().look()
    assert not station.imported
    (refused,) = station.pacs_sync.status()["refused_objects"]
    assert refused.image_id == uid
    assert "all contours are a model's and were not reviewed" in refused.reason


@KINDS
def test_another_servers_prediction_is_refused_and_its_corrected_label_imported(
    server: Orthanc, tmp_path: Path, kind: Kind
) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    other = Station(tmp_path / "other", server.dicomweb_url).look()
    for tag, source in (("original", "infer"), ("final", "client")):
        file = tmp_path / f"{tag}.dcm"
        export(other, submit(other, uid, tag, source), kind, file)
        server.upload([file])
    station = Station(tmp_path / "station", server.dicomweb_url).look().look()
    (version,) = station.imported
    assert "ada" in version.author
    verdicts = [row.verdict for row in station.pacs_sync.objects.by_uid().values()]
    assert sorted(verdicts) == ["kept", "refused"]


@KINDS
def test_another_programs_automatic_contours_are_imported(
    server: Orthanc, tmp_path: Path, kind: Kind
) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    headers, _ = read_headers(tmp_path / "ct", image_id=uid)
    about = ObjectProvenance(model="Atlas", model_version="1", is_automatic=True)
    file = tmp_path / "p.dcm"
    write_object(kind, file, blocks(tmp_path / "ct"), headers, about, image_id=uid)
    foreign = pydicom.dcmread(file)
    foreign.Manufacturer = "Another"
    foreign.save_as(file)
    server.upload([file])
    assert len(Station(tmp_path / "station", server.dicomweb_url).look().look().imported) == 1
