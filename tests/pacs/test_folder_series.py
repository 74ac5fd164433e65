"""A folder of DICOM series in a real Orthanc: added, replaced and removed with the folder."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from lib.config import APP_DIR
from lib.dicom.ct_writer import write_ct_series
from lib.errors import PacsError
from lib.pacs.folder_series import FolderPacs
from lib.pacs.orthanc import find_orthanc
from tests.phantoms import make_ct
from tests.waiting import LIMIT_S, wait_until


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    try:
        find_orthanc()
    except PacsError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    return tmp_path / "studies"


def open_pacs(studies: Path) -> FolderPacs:
    return FolderPacs(
        lambda: {path.name: path for path in studies.iterdir() if path.is_dir()},
        studies.parent / "state",
    )


@pytest.fixture
def pacs(studies: Path) -> Iterator[FolderPacs]:
    opened = open_pacs(studies)
    yield opened
    with suppress(PacsError):
        opened.orthanc().kill()  # an orderly end takes more than two seconds
    opened.stop()


def update(pacs: FolderPacs) -> None:
    while pacs.update():
        pass


def listed(pacs: FolderPacs) -> dict[str, int]:
    """Return SeriesInstanceUID -> number of instances, as OHIF finds them by DICOMweb."""
    orthanc = pacs.orthanc()
    fields = {"includefield": "00201209"}
    answer = requests.get(
        f"{orthanc.dicomweb_url}/series", params=fields, auth=orthanc.auth, timeout=LIMIT_S
    )
    return {
        series["0020000E"]["Value"][0]: series["00201209"]["Value"][0] for series in answer.json()
    }


def test_series_are_added_replaced_and_removed_with_the_folder(
    studies: Path, pacs: FolderPacs
) -> None:
    one = write_ct_series(make_ct(image_id="one"), studies / "one", patient_id="one")
    two = write_ct_series(make_ct(image_id="two"), studies / "two", patient_id="two")
    update(pacs)
    assert listed(pacs) == {one: 12, two: 12}
    assert (pacs.image_of(one), pacs.image_of(two), pacs.image_of("1.2")) == ("one", "two", None)
    found = pacs.series_of("one")
    assert found is not None
    assert found.series_uid == one
    shutil.rmtree(studies / "one")
    shutil.rmtree(studies / "two")
    again = write_ct_series(make_ct(image_id="again"), studies / "two", patient_id="two")
    update(pacs)
    assert listed(pacs) == {again: 12}
    assert (pacs.image_of(one), pacs.image_of(two), pacs.image_of(again)) == (None, None, "two")


def test_a_series_is_not_stored_again_after_a_restart(studies: Path, pacs: FolderPacs) -> None:
    uid = write_ct_series(make_ct(), studies / "one", patient_id="one")
    update(pacs)
    before = pacs.series_of("one")
    pacs.stop()
    second = open_pacs(studies)
    try:
        assert second.update() is False, "there was nothing left to do"
        assert (second.series_of("one"), listed(second)) == (before, {uid: 12})
    finally:
        second.stop()


def test_what_ohif_cannot_show_is_told(studies: Path, pacs: FolderPacs) -> None:
    write_ct_series(make_ct(), studies / "a", patient_id="one")
    shutil.copytree(studies / "a", studies / "b")
    (studies / "broken").mkdir()
    shutil.copy(sorted((studies / "a").iterdir())[0], studies / "broken" / "slice.dcm")
    update(pacs)
    assert set(pacs.refused()) == {"b", "broken"}
    assert "it has the SeriesInstanceUID of a" in pacs.refused()["b"]
    shutil.rmtree(studies / "a")
    shutil.rmtree(studies / "broken")
    (studies / "b" / "touched").touch()
    update(pacs)
    assert pacs.refused() == {}
    assert pacs.series_of("b") is not None


def test_slices_of_a_series_that_could_not_be_sent_as_a_whole_are_removed(
    studies: Path, pacs: FolderPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ct_series(make_ct(), studies / "one", patient_id="one")
    last = sorted((studies / "one").iterdir())[-1]
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == last:
            raise FileNotFoundError(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    update(pacs)
    assert set(pacs.refused()) == {"one"}
    assert listed(pacs) == {}


def test_only_this_machine_with_the_password_is_answered(studies: Path, pacs: FolderPacs) -> None:
    studies.mkdir()
    update(pacs)
    orthanc = pacs.orthanc()
    assert requests.get(f"{orthanc.url}/series", timeout=LIMIT_S).status_code == 401
    assert (orthanc.folder / "orthanc.json").stat().st_mode & 0o077 == 0


def test_a_second_server_over_the_folder_leaves_orthanc_to_the_first(
    studies: Path, pacs: FolderPacs
) -> None:
    studies.mkdir()
    update(pacs)
    second = open_pacs(studies)
    assert second.update() is False
    with pytest.raises(PacsError, match="does not run yet"):
        second.orthanc()


SERVER = """
import sys, time
from pathlib import Path
from lib.pacs.folder_series import FolderPacs
pacs = FolderPacs(dict, Path(sys.argv[1])).start()
while True:
    try:
        print(pacs.orthanc().process.pid, flush=True)
        break
    except Exception:
        time.sleep(0.05)
time.sleep(3600)
"""


def test_orthanc_ends_with_a_server_that_is_killed(studies: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(APP_DIR)}
    command = [sys.executable, "-W", "ignore", "-c", SERVER, str(studies.parent / "state")]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    assert "Orthanc" in psutil.Process(pid).name()
    server.send_signal(signal.SIGKILL)
    server.wait(LIMIT_S)
    server.stdout.close()
    wait_until(lambda: not psutil.pid_exists(pid), "Orthanc has ended")
