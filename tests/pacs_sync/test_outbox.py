"""Tests of the outbox: labels reach a real Orthanc once despite failures, and no request waits for it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from lib.dicom.objects import read_object
from lib.errors import PacsError
from lib.imaging.dicom_series import read_headers
from lib.imaging.scans import read_ct, read_label
from lib.pacs.orthanc import Orthanc
from tests.pacs.orthancs import orthanc, put_ct
from tests.pacs.relay import relay
from tests.pacs_sync.station import LABELS, Station
from tests.phantoms import make_ct, make_oblique_ct
from tests.small_disks import fill, small_disk


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "pacs") as running:
        yield running


def test_all_organs_arrive_with_their_names(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_oblique_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    version = station.submit(uid, values=(1, 3))
    assert station.send() == []
    (sop_uid,) = station.objects()
    (item,) = station.pacs.instances(SOPInstanceUID=sop_uid)
    file = tmp_path / "back.dcm"
    station.pacs.fetch_instance(item.StudyInstanceUID, item.SeriesInstanceUID, sop_uid, file)
    headers, grid = read_headers(tmp_path / "ct", image_id=uid)
    structures = read_object(file, headers, grid, image_id=uid)
    names = {value: name for name, value in LABELS.items()}
    stored, _ = read_label(station.store.require_label(uid, "final"), image_id=uid, image_grid=grid)
    assert set(structures.masks) == {names[1], names[3]} == set(version.organs)
    assert (structures.masks[names[3]] == (stored == 3)).all()
    assert str(pydicom.dcmread(file).ContentCreatorName) == "ada"


def test_a_label_is_sent_once(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    station.submit(uid)
    station.send()
    Station(tmp_path / "station", server.dicomweb_url).look().send()
    assert len(station.objects()) == 1
    assert not station.imported, "an object that this server sent is not imported"


def test_a_label_submitted_while_the_pacs_is_down_is_sent_later(
    server: Orthanc, tmp_path: Path
) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    station.store.require_image(uid)
    server.kill()
    version = station.submit(uid)
    (error,) = station.send()
    assert "cannot be reached" in error
    assert station.store.get_labeled_images() == [uid]
    (waiting,) = station.pacs_sync.status()["outbox"]
    assert waiting.image_id == uid
    assert waiting.number == version.number
    # The server is restarted, too.
    server.start()
    assert Station(tmp_path / "station", server.dicomweb_url).send() == []
    assert len(station.objects()) == 1


def test_the_interval_between_attempts_grows(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    station.submit(uid)
    server.kill()
    waits = []
    for _ in range(3):
        before = time.time()
        station.send()
        (row,) = station.pacs_sync.deliveries.waiting()
        waits.append(row.next_at.timestamp() - before)
    station.pacs_sync.outbox.run()
    assert station.pacs_sync.deliveries.waiting()[0].attempts == 3, "not before its time"
    assert waits[0] < waits[1] < waits[2]


def test_a_lost_answer_does_not_send_a_label_twice(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    with relay(server.port) as network:
        station = Station(tmp_path / "station", network.dicomweb_url).look()
        station.submit(uid)
        network.loses_answers = True
        assert len(station.send()) == 1
        network.loses_answers = False
        assert station.send() == []
        assert len(station.objects()) == 1
        assert station.pacs_sync.deliveries.by_version()[uid, 1].attempts == 2


def test_the_network_is_cut_and_comes_back(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    with relay(server.port) as network:
        station = Station(tmp_path / "station", network.dicomweb_url).look()
        station.submit(uid)
        network.is_cut = True
        (error,) = station.send()
        assert "cannot be reached" in error
        station.look()
        assert "cannot be reached" in station.pacs_sync.status()["trouble"]
        network.is_cut = False
        station.look()
        assert station.pacs_sync.status()["trouble"] == ""
        station.pacs_sync.outbox.run()
        assert len(station.objects()) == 1, "no need to wait for the next try"


@pytest.mark.campaign
def test_a_slow_pacs_gets_a_label_once(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    with relay(server.port) as network:
        station = Station(tmp_path / "station", network.dicomweb_url).look()
        station.store.require_image(uid)
        network.delay_s = 30.0
        held = network.held
        station.submit(uid)
        assert station.store.get_labeled_images() == [uid]
        assert network.held == held, "a submission sends no request that it would wait for"
        assert station.send() == []
        assert network.held > held
    assert len(Station(tmp_path / "other", server.dicomweb_url).objects()) == 1


def test_a_label_is_sent_after_a_refused_login(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    station.submit(uid)
    server.kill()
    locked = Orthanc(server.folder, server.port, users={"label": "secret"})
    with locked:
        (error,) = station.send()
        assert "MONAI_LABEL_DICOMWEB_USERNAME" in error
        reopened = Station(tmp_path / "station", server.dicomweb_url, login=("label", "secret"))
        assert reopened.send() == []
        assert len(reopened.objects()) == 1


def test_a_full_pacs_gets_a_label_when_there_is_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=24) as disk, orthanc(disk / "pacs") as server:
        uid = put_ct(server, make_ct(), tmp_path / "ct")
        station = Station(tmp_path / "station", server.dicomweb_url).look()
        station.submit(uid)
        filler = fill(disk)
        (error,) = station.send()
        assert "is its disk full?" in error
        assert station.store.get_labeled_images() == [uid]
        filler.unlink()
        server.kill()
        server.start()
        assert station.send() == []
        assert len(station.objects()) == 1


def test_an_empty_label_is_not_sent(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    assert not station.submit(uid, values=()).organs
    assert station.send() == []
    assert station.objects() == []
    assert station.store.get_labeled_images() == [uid]
    assert station.pacs_sync.deliveries.by_version()[uid, 1].is_given_up


def test_a_label_replaced_before_it_was_sent_is_not_sent(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    station.submit(uid)
    server.kill()
    station.send()
    newer = station.submit(uid, "bob", values=(2,))
    server.start()
    assert station.send() == []
    (sop_uid,) = station.objects()
    assert station.pacs_sync.deliveries.by_version()[uid, newer.number].sop_uid == sop_uid


def test_an_incomplete_scan_is_not_cached(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    station = Station(tmp_path / "station", server.dicomweb_url).look()
    row = station.store.catalog.require(uid)
    with pytest.raises(PacsError, match="sent 12 of 13 slices"):
        station.store.cache.fetch(uid, row.study_uid, 13)
    assert uid not in station.store.available_images()
    assert len(read_ct(station.store.require_image(uid)).array_hu) == 20


def test_unused_scans_are_evicted(
    server: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.pacs.series_cache.IN_USE_S", -1.0)
    uids = [put_ct(server, make_ct(), tmp_path / f"ct{n}", patient_id=f"{n}") for n in range(3)]
    size = sum(file.stat().st_size for file in (tmp_path / "ct0").iterdir())
    station = Station(tmp_path / "station", server.dicomweb_url, limit_gib=2.2 * size / 2**30)
    station.look()
    station.submit(uids[0])
    for uid in uids[1:]:
        station.store.require_image(uid)
    assert [uid in station.store.available_images() for uid in uids] == [True, False, True]
