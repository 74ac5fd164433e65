"""Routes to sessions: scans that are kept for an hour outside the store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from fastapi import APIRouter, File, HTTPException, UploadFile
from monailabel.endpoints.user.auth import User
from monailabel.utils.sessions import SessionInfo, Sessions
from pydantic import BaseModel

from lib.errors import ReaderStoppedError
from lib.imaging.archives import unpack_zip
from lib.imaging.scans import read_ct
from lib.server.access import USER
from lib.server.bodies import StrictRoute
from lib.server.requests import received, stem_of
from lib.server.responses import BYTES, ERRORS, file_of, scan_file
from lib.server.running_app import get_app
from lib.storage.identifiers import require_session_id

router = APIRouter(prefix="/session", responses=ERRORS, route_class=StrictRoute)


class SessionDescription(BaseModel):
    """A session; times in seconds since 1970, `expiry` in seconds.

    `path` and `image` are the names of the session's folder and of its scan, not paths on the server.
    """

    name: str
    path: str
    image: str
    meta: dict[str, Any] | None
    create_ts: int
    last_access_ts: int
    expiry: int


class CreatedSession(BaseModel):
    """A new session."""

    session_id: str
    session_info: SessionDescription


def _sessions() -> Sessions:
    sessions = get_app().sessions()
    if sessions is None:
        raise HTTPException(406, "sessions are turned off (MONAI_LABEL_SESSIONS)")
    return sessions


def _session(session_id: str, *, update_ts: bool = True) -> SessionInfo:
    session = _sessions().get_session(require_session_id(session_id), update_ts)
    if session is None:
        raise HTTPException(404, f"session {session_id}: not found, or expired")
    return session


def _description(session: SessionInfo) -> SessionDescription:
    values = session.to_json()
    names = {key: Path(values[key]).name for key in ("path", "image")}
    return SessionDescription(**{**values, **names})


def session_scan(session_id: str) -> Path:
    """Return the scan of a session."""
    return Path(_session(session_id).image)


def _kept(paths: Sequence[Path], name: str, reason: str) -> str:
    """Keep files that ended their reader in quarantine, and return the reason with the place."""
    file = paths[0]
    if len(paths) > 1:
        file = file.with_name("files.zip")
        with ZipFile(file, "w") as archive:
            for path in paths:
                archive.write(path, path.name)
    return get_app().store.submissions.refuse(file, {"image": name}, reason)


@router.put("/")
def create_session(
    uncompress: bool = False,
    expiry: int = 0,
    files: list[UploadFile] = File(...),
    _user: User = USER,
) -> CreatedSession:
    """Keep a scan for a while: one file, a zip, or the files of one DICOM series."""
    sessions = _sessions()
    name = stem_of(files[0])[:80] or "session"
    with received(*files) as paths:
        scan = paths[0]
        if scan.suffix == ".zip" or uncompress:
            scan = unpack_zip(scan, scan.with_suffix(""), name)
        elif len(paths) > 1 or scan.suffix == ".dcm":
            scan = scan.parent
        try:
            read_ct(scan, image_id=name)
        except ReaderStoppedError as error:
            raise ReaderStoppedError(_kept(paths, name, str(error))) from error
        session_id, info = sessions.add_session(str(scan), expiry)
    return CreatedSession(session_id=session_id, session_info=_description(info))


@router.get("/{session_id}", response_model=SessionDescription, responses=file_of(BYTES))
def get_session(
    session_id: str,
    update_ts: bool = False,
    image: bool = False,
    _user: User = USER,
) -> Any:
    """Return a session, or with `image` its scan."""
    session = _session(session_id, update_ts=update_ts)
    return scan_file(Path(session.image), "session") if image else _description(session)


@router.delete("/{session_id}")
def remove_session(session_id: str, _user: User = USER) -> SessionDescription:
    """Remove a session and its scan."""
    session = _session(session_id)
    _sessions().remove_session(session_id)
    return _description(session)
