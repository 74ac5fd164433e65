"""Tests of the PACS client, with a real Orthanc and with servers that are not a PACS."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest

from lib.errors import ConfigError, PacsError
from lib.imaging.scans import read_ct
from lib.pacs import client
from lib.pacs.client import Pacs
from lib.pacs.orthanc import Orthanc
from tests.pacs.orthancs import free_port, orthanc, put_ct
from tests.phantoms import make_ct, make_oblique_ct


def study_of(pacs: Pacs, series_uid: str) -> str:
    (series,) = pacs.series(SeriesInstanceUID=series_uid)
    return str(series.StudyInstanceUID)


def fetched(server: Orthanc, uid: str, folder: Path) -> Path:
    pacs = Pacs(server.dicomweb_url)
    folder.mkdir()
    pacs.fetch_series(study_of(pacs, uid), uid, folder)
    return folder


def test_a_series_comes_back_voxel_for_voxel(tmp_path: Path) -> None:
    ct = make_oblique_ct()
    with orthanc(tmp_path / "pacs") as server:
        uid = put_ct(server, ct, tmp_path / "sent")
        received = read_ct(fetched(server, uid, tmp_path / "got"))
    sent = read_ct(tmp_path / "sent")
    assert (received.array_hu == sent.array_hu).all()
    assert received.grid.is_same_as(sent.grid)


def test_headers_equal_those_of_the_files_without_pixels(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as server:
        uid = put_ct(server, make_ct(), tmp_path / "sent")
        pacs = Pacs(server.dicomweb_url)
        headers = {str(h.SOPInstanceUID): h for h in pacs.headers(study_of(pacs, uid), uid)}
    for file in (tmp_path / "sent").glob("*.dcm"):
        sent = pydicom.dcmread(file)
        header = headers.pop(str(sent.SOPInstanceUID))
        assert header.ImagePositionPatient == sent.ImagePositionPatient
        assert not header.get("PixelData")
    assert not headers


def test_an_instance_stored_twice_is_there_once(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as server:
        put_ct(server, make_ct(), tmp_path / "sent")
        file = next((tmp_path / "sent").glob("*.dcm"))
        sent = pydicom.dcmread(file)
        sent.SOPInstanceUID = sent.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        sent.save_as(tmp_path / "new.dcm")
        pacs = Pacs(server.dicomweb_url)
        assert not pacs.holds(sent.StudyInstanceUID, sent.SOPInstanceUID)
        for _ in range(2):
            pacs.store(tmp_path / "new.dcm")
        assert pacs.holds(sent.StudyInstanceUID, sent.SOPInstanceUID)
        assert len(pacs.instances(SOPInstanceUID=sent.SOPInstanceUID)) == 1


def test_all_pages_of_a_long_list_are_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 5)
    with orthanc(tmp_path / "pacs") as server:
        put_ct(server, make_ct(), tmp_path / "sent")
        instances = Pacs(server.dicomweb_url).instances(Modality="CT")
    assert len({str(item.SOPInstanceUID) for item in instances}) == len(instances) == 12


def test_a_refused_login_names_the_settings_to_check(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs", users={"label": "secret"}) as server:
        put_ct(server, make_ct(), tmp_path / "sent")
        with pytest.raises(PacsError, match="MONAI_LABEL_DICOMWEB_USERNAME"):
            Pacs(server.dicomweb_url, user="label", password="wrong").series()
        assert len(Pacs(server.dicomweb_url, user="label", password="secret").series()) == 1


def test_a_pacs_that_is_down_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    with pytest.raises(PacsError, match=f"{url} cannot be reached"):
        Pacs(url).series()


@pytest.mark.parametrize("url", ["ftp://pacs/dicom-web", "pacs"])
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a DICOMweb server"):
        Pacs(url)


class _Odd(BaseHTTPRequestHandler):
    """A server whose responses are not those of a DICOMweb server."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = b"<html>hello</html>"
        if url.path.startswith("/same/"):
            # Always the first page, even if another offset is requested.
            uids = range(int(parse_qs(url.query)["limit"][0]))
            items = [f'{{"00080018":{{"vr":"UI","Value":["1.2.{n}"]}}}}' for n in uids]
            body = f"[{','.join(items)}]".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def odd() -> "str":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_web_page_is_not_a_pacs(odd: str) -> None:
    with pytest.raises(PacsError, match="not DICOMweb"):
        Pacs(f"{odd}/page").series()


def test_a_list_ends_if_the_server_ignores_paging(
    odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 7)
    assert len(Pacs(f"{odd}/same").instances()) == 7
