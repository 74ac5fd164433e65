"""Tests of the inbox: SEG and RTSTRUCT of others in a real Orthanc become label versions once."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lib.assignment.reader_studies import readings_by_reader
from lib.dicom.ct_writer import write_ct_series
from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.objects import Kind, write_object
from lib.errors import GeometryError, LabelError
from lib.imaging.dicom_series import read_headers
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import LabelVolume
from lib.pacs.orthanc import Orthanc
from tests.pacs.orthancs import orthanc, put_ct
from tests.pacs_sync.station import LABELS, Station
from tests.phantoms import make_ct, make_oblique_ct

YESTERDAY = datetime.now(timezone.utc) - timedelta(days=1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "pacs") as running:
        yield running


def draw(
    series: Path,
    file: Path,
    *,
    kind: Kind = "seg",
    author: str = "eve",
    at: datetime = YESTERDAY,
    values: tuple[int, ...] = (1,),
    labels: dict[str, int] | None = None,
) -> LabelVolume:
    """Write contours on a series as another program does, and return them."""
    ct = read_ct(series)
    array = np.zeros(ct.grid.shape_vox, np.uint8)
    for number, value in enumerate(values):
        array[2 + 4 * number : 5 + 4 * number, 4:9, 2:8] = value
    label = LabelVolume(array, ct.grid, labels or LABELS)
    headers, _ = read_headers(series, image_id="x")
    write_object(
        kind, file, label, headers, ObjectProvenance(author=author, created=at), image_id="x"
    )
    return label


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_contours_of_another_user_become_a_label(
    server: Orthanc, tmp_path: Path, kind: Kind
) -> None:
    uid = put_ct(server, make_oblique_ct(), tmp_path / "ct")
    contours = draw(tmp_path / "ct", tmp_path / "drawn.dcm", kind=kind, values=(1, 3))
    server.upload([tmp_path / "drawn.dcm"])
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    station.look()
    (version,) = station.imported
    assert (version.image_id, version.source) == (uid, "pacs")
    assert "eve" in version.author
    assert abs(version.submitted_at - YESTERDAY) < timedelta(seconds=1)
    assert set(version.organs) == {n for n, v in LABELS.items() if v in (1, 3)}
    array = read_label_of(station, uid)
    assert ((array == 3) == (contours.array == 3)).mean() > 0.999
    assert station.store.get_unlabeled_images() == []


def read_label_of(station: Station, uid: str) -> LabelArray:
    array, _ = read_label(station.store.require_label(uid, "final"), image_id=uid, image_grid=None)
    return array


def test_an_object_is_imported_once_and_never_sent_back(server: Orthanc, tmp_path: Path) -> None:
    put_ct(server, make_ct(), tmp_path / "ct")
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    server.upload([tmp_path / "drawn.dcm"])
    for _ in range(2):
        station = Station(tmp_path / "station", server.dicomweb_url).look()
        station.look()
    assert not station.imported
    assert len(station.history.current()) == 1
    assert station.send() == []
    assert len(station.objects()) == 1


def test_all_objects_are_kept_and_the_newest_is_current(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    for number, (author, days) in enumerate((("eve", 1), ("mallory", 3), ("eve", 2))):
        file = tmp_path / f"{number}.dcm"
        at = datetime.now(timezone.utc) - timedelta(days=days)
        draw(tmp_path / "ct", file, author=author, at=at, values=(number + 1,))
        server.upload([file])
    station = Station(tmp_path / "station", server.dicomweb_url).look().look()
    versions = station.history.history(uid, "final")
    assert [v.author for v in versions] == ["mallory", "eve", "eve"], "in the order of drawing"
    names = {value: name for name, value in LABELS.items()}
    assert station.history.newest(uid, "final") is not None
    assert versions[-1].organs == [names[1]]
    assert set(readings_by_reader(versions)) == {"mallory", "eve"}
    assert readings_by_reader(versions)["eve"].organs == [names[1]]
    assert set(np.unique(read_label_of(station, uid))) == {0, 1}


def test_older_contours_do_not_replace_a_submitted_label(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    submitted = station.submit(uid, values=(2,))
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    server.upload([tmp_path / "drawn.dcm"])
    station.look()
    assert len(station.history.history(uid, "final")) == 2
    newest = station.history.newest(uid, "final")
    assert newest is not None
    assert newest.digest == submitted.digest
    assert set(np.unique(read_label_of(station, uid))) == {0, 2}
    station.store.watcher.run()
    assert set(np.unique(read_label_of(station, uid))) == {0, 2}


def test_contours_that_arrive_before_their_scan_wait_for_it(
    server: Orthanc, tmp_path: Path
) -> None:
    uid = write_ct_series(make_ct(), tmp_path / "ct", patient_id="late")
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    server.upload([tmp_path / "drawn.dcm"])
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    assert not station.history.current()
    server.upload(sorted((tmp_path / "ct").glob("*.dcm")))
    station.look().look()
    assert [v.image_id for v in station.history.current()] == [uid]


def test_unknown_organs_are_refused_and_named(server: Orthanc, tmp_path: Path) -> None:
    put_ct(server, make_ct(), tmp_path / "ct")
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    spoiled = pydicom.dcmread(tmp_path / "drawn.dcm")
    spoiled.SegmentSequence[0].SegmentLabel = "Tumour"
    spoiled.save_as(tmp_path / "drawn.dcm")
    server.upload([tmp_path / "drawn.dcm"])
    station = Station(tmp_path / "station", server.dicomweb_url).look().look()
    (refused,) = station.pacs_sync.status()["refused_objects"]
    assert "'Tumour'" in refused.reason
    assert not station.history.current()
    assert len(station.quarantine.entries()) == 1


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_targets_besides_the_organs_are_ignored_with_a_note(
    server: Orthanc, tmp_path: Path, kind: Kind
) -> None:
    put_ct(server, make_ct(), tmp_path / "ct")
    labels = {**LABELS, "Brain": 9}
    draw(tmp_path / "ct", tmp_path / "drawn.dcm", kind=kind, values=(1, 9), labels=labels)
    rename(tmp_path / "drawn.dcm", "Brain", "PTV_70")
    server.upload([tmp_path / "drawn.dcm"])
    station = Station(tmp_path / "station", server.dicomweb_url).look().look()
    (version,) = station.imported
    assert version.organs == ["Brainstem"]
    assert "ignored, no organs of this server: 'PTV_70'" in version.changes
    assert set(np.unique(read_label_of(station, version.image_id))) == {0, 1}


def test_a_submitted_rtstruct_with_targets_goes_to_the_pacs(
    server: Orthanc, tmp_path: Path
) -> None:
    put_ct(server, make_ct(), tmp_path / "ct")
    file = tmp_path / "drawn.dcm"
    draw(tmp_path / "ct", file, kind="rtstruct", values=(1, 9), labels={**LABELS, "Brain": 9})
    rename(file, "Brain", "PTV_70")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    assert (
        station.pacs_sync.importer.import_submitted(file, author="ada", client="planning") is None
    )
    assert not station.history.current()


def rename(file: Path, name: str, new: str) -> None:
    """Rename a structure of a SEG or RTSTRUCT."""
    dataset = pydicom.dcmread(file)
    for item in dataset.get("SegmentSequence") or dataset.StructureSetROISequence:
        for keyword in ("SegmentLabel", "ROIName"):
            if item.get(keyword) == name:
                setattr(item, keyword, new)
    dataset.save_as(file)


def test_an_object_submitted_twice_becomes_one_version(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    import_object = station.pacs_sync.importer.import_submitted
    first = import_object(tmp_path / "drawn.dcm", author="ada", client="ohif")
    again = import_object(tmp_path / "drawn.dcm", author="ada", client="ohif")
    assert first is not None
    assert again is not None
    assert first.number == again.number == 1
    assert first.author == "ada", "who sent it, not who the file says"
    assert first.submitted_at > YESTERDAY + timedelta(hours=1)
    assert station.store.get_labeled_images() == [uid]


def test_objects_without_scan_or_contours_are_not_imported(server: Orthanc, tmp_path: Path) -> None:
    put_ct(server, make_ct(), tmp_path / "ct")
    write_ct_series(make_ct(), tmp_path / "other", patient_id="not in the PACS")
    draw(tmp_path / "other", tmp_path / "drawn.dcm")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    import_object = station.pacs_sync.importer.import_submitted
    assert import_object(tmp_path / "drawn.dcm", author="", client="") is None
    assert import_object(next((tmp_path / "ct").glob("*.dcm")), author="", client="") is None
    (tmp_path / "junk.dcm").write_bytes(b"junk")
    with pytest.raises(LabelError, match="no DICOM object"):
        import_object(tmp_path / "junk.dcm", author="", client="")


def test_a_segment_off_the_slices_is_refused_and_kept(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    moved = pydicom.dcmread(tmp_path / "drawn.dcm")
    for frame in moved.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        position[2] = float(position[2]) + 1.4
    moved.save_as(tmp_path / "drawn.dcm")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    with pytest.raises(GeometryError, match="kept as quarantine/"):
        station.pacs_sync.importer.import_submitted(
            tmp_path / "drawn.dcm", author="ada", client="ohif"
        )
    assert station.store.get_unlabeled_images() == [uid]
    assert len(station.quarantine.entries()) == 1
