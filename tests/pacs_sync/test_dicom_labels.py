"""Tests of labels that users submit as DICOM objects: each new submission becomes one version."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest

from lib.datastores.dicomweb import open_pacs, pacs_login
from lib.errors import ConfigError
from lib.pacs.orthanc import Orthanc
from tests.pacs.orthancs import orthanc, put_ct
from tests.pacs_sync.station import Station
from tests.pacs_sync.test_inbox import draw
from tests.phantoms import make_ct

SETTINGS = "monailabel.config.settings"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "pacs") as running:
        put_ct(running, make_ct(), tmp_path / "ct")
        yield running


@pytest.fixture
def station(server: Orthanc, tmp_path: Path) -> Station:
    return Station(tmp_path / "station", server.dicomweb_url).look()


def submit(station: Station, file: Path) -> int:
    version = station.pacs_sync.importer.import_submitted(file, author="ada", client="ohif")
    assert version is not None
    return version.number


def test_an_object_submitted_again_after_another_label_becomes_a_version(
    station: Station, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.dcm", tmp_path / "second.dcm"
    draw(tmp_path / "ct", first, values=(1,))
    draw(tmp_path / "ct", second, values=(2,))
    assert [submit(station, file) for file in (first, first, second, first)] == [1, 1, 2, 3]
    (current,) = station.history.current()
    assert (current.number, current.organs) == (3, ["Brainstem"])


def test_an_object_submitted_again_after_its_removal_becomes_a_version(
    station: Station, tmp_path: Path
) -> None:
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    submit(station, tmp_path / "drawn.dcm")
    (image,) = station.store.get_labeled_images()
    station.store.remove_label(image, "final")
    assert not station.history.current()
    assert submit(station, tmp_path / "drawn.dcm") == 2
    assert station.store.get_labeled_images() == [image]


def test_an_object_submitted_concurrently_becomes_one_version(
    station: Station, tmp_path: Path
) -> None:
    draw(tmp_path / "ct", tmp_path / "drawn.dcm")
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(submit, [station] * 4, [tmp_path / "drawn.dcm"] * 4))
    assert numbers == [1, 1, 1, 1]


def test_an_rtstruct_with_empty_other_structures_becomes_a_label(
    station: Station, tmp_path: Path
) -> None:
    file = tmp_path / "drawn.dcm"
    draw(tmp_path / "ct", file, kind="rtstruct", values=(1, 2))
    dataset = pydicom.dcmread(file)
    dataset.StructureSetROISequence[1].ROIName = "BODY"
    del dataset.ROIContourSequence[1].ContourSequence
    dataset.save_as(file)
    assert submit(station, file) == 1


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="MONAI_LABEL_DICOMWEB_USERNAME") as raised:
        open_pacs("http://doc:s3cret@127.0.0.1:8042/dicom-web")
    assert "s3cret" not in str(raised.value)


def test_the_login_comes_from_either_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pacs_login() == ("", "")
    monkeypatch.setattr(f"{SETTINGS}.MONAI_LABEL_DATASTORE_USERNAME", "store")
    monkeypatch.setattr(f"{SETTINGS}.MONAI_LABEL_DATASTORE_PASSWORD", "one")
    assert pacs_login() == ("store", "one")
    monkeypatch.setattr(f"{SETTINGS}.MONAI_LABEL_DICOMWEB_USERNAME", "web")
    monkeypatch.setattr(f"{SETTINGS}.MONAI_LABEL_DICOMWEB_PASSWORD", "other")
    assert pacs_login() == ("web", "other")
