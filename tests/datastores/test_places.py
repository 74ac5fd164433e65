"""Tests of the folders of a server: which are refused at the start, and with which advice."""

from pathlib import Path

import pytest

from lib.datastores.places import Places, places_of
from lib.errors import ConfigError
from tests.permissions import forbidden

PACS = "http://pacs/dicom-web"


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    return folder


def places(studies: Path | str, folder: Path, state_dir: Path | None = None) -> Places:
    return places_of(str(studies), model_dir=folder / "models", state_dir=state_dir)


def test_a_server_writes_into_its_studies_folder(tmp_path: Path) -> None:
    studies = tmp_path / "new" / "studies"
    expected = Places(scans=studies, labels=studies, state=studies / ".organnet")
    assert places(studies, tmp_path) == expected
    assert list(studies.iterdir()) == [studies / ".organnet"]


def test_a_server_with_a_state_folder_writes_only_there(tmp_path: Path, studies: Path) -> None:
    state = tmp_path / "state"
    with forbidden(studies, mode=0o555):
        expected = Places(scans=studies, labels=state, state=state / ".organnet")
        assert places(studies, tmp_path, state) == expected
    assert list(studies.iterdir()) == []


def test_the_state_of_a_pacs_is_with_the_models_or_in_the_state_folder(tmp_path: Path) -> None:
    own = tmp_path / "models" / ".organnet"
    assert places(PACS, tmp_path) == Places(scans=None, labels=own / "pacs", state=own)
    own = tmp_path / "state" / ".organnet"
    expected = Places(scans=None, labels=own / "pacs", state=own)
    assert places(PACS, tmp_path, tmp_path / "state") == expected


def test_read_only_studies_without_a_place_for_labels_are_refused(
    tmp_path: Path, studies: Path
) -> None:
    with (
        forbidden(studies, mode=0o555),
        pytest.raises(ConfigError, match=r"no permission.*start the server with `--conf state_dir"),
    ):
        places(studies, tmp_path)
    (studies / ".organnet").mkdir()
    with forbidden(studies, mode=0o555), pytest.raises(ConfigError, match="--conf state_dir"):
        places(studies, tmp_path)
    with forbidden(tmp_path / "studies" / ".organnet", mode=0o555), pytest.raises(ConfigError):
        places(studies, tmp_path)


def test_studies_that_cannot_be_read_are_refused(tmp_path: Path, studies: Path) -> None:
    with forbidden(studies), pytest.raises(ConfigError, match="cannot be read as a folder"):
        places(studies, tmp_path, tmp_path / "state")
    with pytest.raises(ConfigError, match="No such file or directory"):
        places(tmp_path / "none", tmp_path, tmp_path / "state")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be read as a folder"):
        places(tmp_path / "file", tmp_path)


def test_a_state_folder_that_cannot_be_written_is_refused(tmp_path: Path, studies: Path) -> None:
    (tmp_path / "state").mkdir()
    with (
        forbidden(tmp_path / "state", mode=0o555),
        pytest.raises(ConfigError, match=r"--conf state_dir: .*choose a folder that"),
    ):
        places(studies, tmp_path, tmp_path / "state")
    with forbidden(tmp_path, mode=0o555), pytest.raises(ConfigError, match="--conf model_dir"):
        places(PACS, tmp_path)


def test_labels_in_the_studies_are_not_left_behind(tmp_path: Path, studies: Path) -> None:
    database = studies / ".organnet" / "workflow.sqlite"
    database.parent.mkdir()
    database.write_bytes(b"labels")
    with pytest.raises(ConfigError, match=r"copy \.organnet, labels and datastore_v2\.json"):
        places(studies, tmp_path, tmp_path / "state")
    copy = tmp_path / "state" / ".organnet" / "workflow.sqlite"
    copy.write_bytes(database.read_bytes())
    assert places(studies, tmp_path, tmp_path / "state").labels == tmp_path / "state"
