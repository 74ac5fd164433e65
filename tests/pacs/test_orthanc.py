"""Tests of the local Orthanc: stored data survive a kill, and a login is required if it is set."""

from pathlib import Path

import requests

from tests.pacs.orthancs import orthanc, put_ct
from tests.phantoms import make_ct
from tests.waiting import LIMIT_S


def series_of(url: str, auth: tuple[str, str] | None = None) -> requests.Response:
    return requests.get(f"{url}/series", params={"Modality": "CT"}, auth=auth, timeout=LIMIT_S)


def test_stored_instances_survive_a_kill(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs:
        uid = put_ct(pacs, make_ct(), tmp_path / "ct")
        pacs.kill()
        pacs.start()
        (series,) = series_of(pacs.dicomweb_url).json()
    assert series["0020000E"]["Value"] == [uid]


def test_a_request_without_login_is_refused(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs", users={"label": "secret"}) as pacs:
        assert series_of(pacs.dicomweb_url).status_code == 401
        assert series_of(pacs.dicomweb_url, pacs.auth).status_code == 200
