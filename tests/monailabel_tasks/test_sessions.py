import json
import os
import time
from pathlib import Path

import pytest

from lib.errors import DatastoreError
from lib.monailabel_tasks.sessions import ScanSessions


@pytest.fixture
def sessions(tmp_path: Path) -> ScanSessions:
    return ScanSessions(str(tmp_path / "sessions"), 3600)


def add(sessions: ScanSessions, tmp_path: Path) -> str:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"scan")
    session_id, _ = sessions.add_session(str(path))
    return str(session_id)


def test_a_session_is_found_by_a_server_that_starts_later(
    sessions: ScanSessions, tmp_path: Path
) -> None:
    session_id = add(sessions, tmp_path)
    later = ScanSessions(str(tmp_path / "sessions"), 3600)
    session = later.get_session(session_id)
    assert session is not None
    assert Path(session.image).read_bytes() == b"scan"


@pytest.mark.parametrize("name", ["..", "../..", "/tmp", "x", ""])  # noqa: S108 - never opened
def test_only_a_uuid_names_a_session(sessions: ScanSessions, tmp_path: Path, name: str) -> None:
    add(sessions, tmp_path)
    with pytest.raises(DatastoreError, match="not a session id"):
        sessions.get_session(name)
    with pytest.raises(DatastoreError, match="not a session id"):
        sessions.remove_session(name)
    assert len(list((tmp_path / "sessions").iterdir())) == 1


def test_sessions_that_are_too_old_are_removed_and_no_others(
    sessions: ScanSessions, tmp_path: Path
) -> None:
    old, new = add(sessions, tmp_path), add(sessions, tmp_path)
    about = tmp_path / "sessions" / old / "meta.info"
    about.write_text(json.dumps({**json.loads(about.read_text()), "last_access_ts": 1}))
    sessions.clear()
    assert sessions.remove_expired() == 1
    assert [p.name for p in (tmp_path / "sessions").iterdir()] == [new]


def test_an_incomplete_session_does_not_stop_the_start(
    sessions: ScanSessions, tmp_path: Path
) -> None:
    cut = tmp_path / "sessions" / "6f0a6cde-c6b5-11f0-8de9-0242ac120002"
    cut.mkdir(parents=True)
    (cut / "meta.info").touch()
    (tmp_path / "sessions" / "another folder").mkdir()
    assert sessions.get_session(cut.name) is None
    assert sessions.remove_expired() == 0
    long_ago = time.time() - 7200
    os.utime(cut, (long_ago, long_ago))
    assert sessions.remove_expired() == 1
    assert [p.name for p in (tmp_path / "sessions").iterdir()] == ["another folder"]
