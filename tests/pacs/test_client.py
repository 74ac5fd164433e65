"""Asking a PACS: a real Orthanc, and servers that are none."""

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
    (found,) = pacs.series(SeriesInstanceUID=series_uid)
    return str(found.StudyInstanceUID)


def fetched(server: Orthanc, uid: str, folder: Path) -> Path:
    pacs = Pacs(server.dicomweb_url)
    folder.mkdir()
    pacs.fetch_series(study_of(pacs, uid), uid, folder)
    return folder


def test_a_series_comes_back_voxel_for_voxel(tmp_path: Path) -> None:
    ct = make_oblique_ct()
    with orthanc(tmp_path / "pacs") as server:
        uid = put_ct(server, ct, tmp_path / "sent")
        found = read_ct(fetched(server, uid, tmp_path / "got"))
    sent = read_ct(tmp_path / "sent")
    assert (found.array_hu == sent.array_hu).all()
    assert found.grid.is_same_as(sent.grid)


def test_headers_are_those_of_the_files_but_for_the_pixels(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as server:
        uid = put_ct(server, make_ct(), tmp_path / "sent")
        pacs = Pacs(server.dicomweb_url)
        found = {str(h.SOPInstanceUID): h for h in pacs.headers(study_of(pacs, uid), uid)}
    for file in (tmp_path / "sent").glob("*.dcm"):
        sent = pydicom.dcmread(file)
        header = found.pop(str(sent.SOPInstanceUID))
        assert header.ImagePositionPatient == sent.ImagePositionPatient
        assert not header.get("PixelData")
    assert not found


def test_an_instance_that_was_stored_is_there_once(tmp_path: Path) -> None:
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


def test_a_long_list_comes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAGE", 5)
    with orthanc(tmp_path / "pacs") as server:
        put_ct(server, make_ct(), tmp_path / "sent")
        found = Pacs(server.dicomweb_url).instances(Modality="CT")
    assert len({str(item.SOPInstanceUID) for item in found}) == len(found) == 12


def test_a_pacs_that_does_not_let_us_in_says_which_settings_to_look_at(tmp_path: Path) -> None:
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
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a DICOMweb server"):
        Pacs(url)


class _Odd(BaseHTTPRequestHandler):
    """Answers as not DICOMweb server should."""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        body = b"<html>hello</html>"
        if asked.path.startswith("/same/"):
            # The first page, whatever was asked for.
            uids = range(int(parse_qs(asked.query)["limit"][0]))
            items = [f'{{"00080018":{{"vr":"UI","Value":["1.2.{n}"]}}}}' for n in uids]
            body = f"[{','.join(items)}]".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def odd() -> "str":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_web_page_is_no_pacs(odd: str) -> None:
    with pytest.raises(PacsError, match="not DICOMweb"):
        Pacs(f"{odd}/page").series()


def test_a_server_that_knows_no_pages_does_not_hold_us_up(
    odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 7)
    assert len(Pacs(f"{odd}/same").instances()) == 7
