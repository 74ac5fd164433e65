"""Tests that items that a PACS lists but does not deliver do not block others, with a real Orthanc."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pydicom
import pytest

from lib.errors import NotDeliveredError, PacsError
from lib.pacs import retry_backoff
from lib.pacs.client import Pacs
from lib.pacs.orthanc import Orthanc
from lib.pacs_sync import sync
from tests.pacs.orthancs import orthanc, put_ct
from tests.pacs.relay import NO_ITEM, NO_PART, NOT_FOUND, Relay, relay
from tests.pacs_sync.station import Station
from tests.pacs_sync.test_inbox import draw
from tests.phantoms import make_ct


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "pacs") as running:
        yield running


@pytest.fixture
def network(server: Orthanc) -> Iterator[Relay]:
    with relay(server.port) as passing:
        yield passing


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock of the backoff, so that no wait is over because the machine is busy."""
    moment = datetime.now(timezone.utc)
    monkeypatch.setattr(retry_backoff, "now", lambda: moment)


def let_an_hour_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock of the backoff one hour ahead, so that each wait is over."""
    moment = datetime.now(timezone.utc) + timedelta(hours=1)
    monkeypatch.setattr(retry_backoff, "now", lambda: moment)


def uid_of(file: Path) -> str:
    return str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)


def undelivered(station: Station) -> dict[str, str]:
    return {item.uid: item.reason for item in station.pacs_sync.status()["undelivered"]}


def put_objects(server: Orthanc, folder: Path, count: int) -> list[str]:
    """Store several objects drawn on one CT, and return their UIDs as the PACS lists them."""
    put_ct(server, make_ct(), folder / "ct")
    for number in range(count):
        file = folder / f"drawn{number}.dcm"
        draw(folder / "ct", file, values=(number + 1,))
        server.upload([file])
    return [
        str(item.SOPInstanceUID) for item in Pacs(server.dicomweb_url).instances(Modality="SEG")
    ]


@pytest.mark.parametrize("answered", [(NOT_FOUND, "HTTP 404"), (NO_PART, "is not DICOMweb")])
def test_an_undelivered_object_does_not_block_others(
    server: Orthanc,
    network: Relay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answered: tuple[bytes, str],
) -> None:
    refusal, reason = answered
    first, *others = put_objects(server, tmp_path, 3)
    network.refuses, network.refusal = first, refusal
    station = Station(tmp_path / "station", network.dicomweb_url).look()
    late = put_ct(server, make_ct(), tmp_path / "late", patient_id="late")
    station.look()
    assert {v.info["sop_instance_uid"] for v in station.imported} == set(others)
    assert late in station.store.list_images(), "series are judged all the same"
    assert reason in undelivered(station)[first]
    assert station.pacs_sync.status()["trouble"] == ""
    assert station.look().pacs_sync.status()["undelivered"][0].attempts == 1, "not each time"
    network.refuses = ""
    let_an_hour_pass(monkeypatch)
    station.look()
    assert len(station.imported) == 3
    assert not undelivered(station)


@pytest.mark.parametrize("answered", [(NOT_FOUND, "HTTP 404"), (NO_ITEM, "but no slice of it")])
def test_an_undelivered_series_does_not_block_the_check_of_others(
    server: Orthanc,
    network: Relay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answered: tuple[bytes, str],
) -> None:
    refusal, reason = answered
    good = put_ct(server, make_ct(), tmp_path / "good", patient_id="good")
    station = Station(tmp_path / "station", network.dicomweb_url)
    station.store.catalog.refresh()
    # The newest series is checked first.
    bad = put_ct(server, make_ct(), tmp_path / "bad", patient_id="bad")
    network.refuses, network.refusal = bad, refusal
    station.look()
    assert station.store.list_images() == [good]
    assert reason in undelivered(station)[bad]
    assert station.pacs_sync.status()["unchecked"] == 1
    network.refuses = ""
    let_an_hour_pass(monkeypatch)
    assert sorted(station.look().store.list_images()) == sorted([good, bad])
    assert not undelivered(station)


def test_an_undelivered_scan_does_not_block_fetching_others(
    server: Orthanc, network: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = [put_ct(server, make_ct(), tmp_path / name, patient_id=name) for name in ("one", "two")]
    station = Station(tmp_path / "station", network.dicomweb_url).look()
    first, second = station.store.list_images()
    assert {first, second} == set(uids)
    network.refuses = first
    while station.pacs_sync.fetch_next():
        pass
    assert second in station.store.available_images()
    assert first not in station.store.available_images()
    assert "HTTP 404" in undelivered(station)[first]
    network.refuses = ""
    let_an_hour_pass(monkeypatch)
    assert station.pacs_sync.fetch_next()
    assert first in station.store.available_images()
    assert not undelivered(station)


def test_waiting_times_grow(
    server: Orthanc, network: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uid,) = put_objects(server, tmp_path, 1)
    network.refuses = uid
    station = Station(tmp_path / "station", network.dicomweb_url)
    waits = []
    moment = datetime.now(timezone.utc)
    for _ in range(3):
        monkeypatch.setattr(retry_backoff, "now", lambda moment=moment: moment)
        station.look()
        (item,) = station.pacs_sync.status()["undelivered"]
        waits.append(item.next_at - moment)
        moment += waits[-1]
    network.refuses = ""
    assert waits[0] < waits[1] < waits[2]


def test_a_pacs_that_stops_answering_ends_the_run_with_an_error(
    server: Orthanc, network: Relay, tmp_path: Path
) -> None:
    put_objects(server, tmp_path, 3)
    station = Station(tmp_path / "station", network.dicomweb_url)
    fetch = station.pacs.fetch_instance

    def cut_and_fetch(study_uid: str, series_uid: str, sop_uid: str, path: Path) -> None:
        # The lists were received before: only the objects are missing.
        network.is_cut = True
        fetch(study_uid, series_uid, sop_uid, path)

    station.pacs.fetch_instance = cut_and_fetch  # type: ignore[method-assign]
    station.look()
    assert not station.imported
    assert len(undelivered(station)) == 1, "one request, not three"
    for _ in range(2):
        assert not station.pacs_sync.look()
        assert "cannot be reached" in station.pacs_sync.status()["trouble"]
    network.is_cut = False
    station.pacs.fetch_instance = fetch  # type: ignore[method-assign]
    station.look()
    assert station.pacs_sync.status()["trouble"] == ""
    assert len(station.imported) == 2, "the others come first"


def test_slow_object_lists_are_requested_less_often(
    network: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "LIST_EVERY_S", 0.1)
    station = Station(tmp_path / "station", network.dicomweb_url)
    network.delay_s = 0.2
    station.look()
    held = network.held
    assert held >= 3, "scans, SEGs and RTSTRUCTs"
    # Longer than ten times the list of scans, but shorter than ten times all three lists.
    time.sleep(4.0)
    station.pacs_sync.look()
    assert network.held == held


def test_a_refusal_is_distinguished_from_no_answer(server: Orthanc, tmp_path: Path) -> None:
    uid = put_ct(server, make_ct(), tmp_path / "ct")
    pacs = Pacs(server.dicomweb_url)
    with pytest.raises(NotDeliveredError, match="HTTP 404"):
        pacs.headers("1.2.3", "1.2.3.4")
    with pytest.raises(NotDeliveredError, match="HTTP 404"):
        pacs.fetch_instance("1.2.3", uid, "1.2.3.4", tmp_path / "x.dcm")
    server.kill()
    with pytest.raises(PacsError, match="cannot be reached") as no_answer:
        pacs.headers("1.2.3", "1.2.3.4")
    assert not isinstance(no_answer.value, NotDeliveredError)
