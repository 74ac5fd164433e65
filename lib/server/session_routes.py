"""The routes to sessions: scans kept for a while, outside the store."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, File, HTTPException, UploadFile
from monailabel.endpoints import session
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.imaging.formats import unpack_zip
from lib.imaging.scans import read_ct
from lib.server import responses
from lib.server.roles import USER
from lib.server.uploads import received, stem_of
from lib.storage.identifiers import require_session_id

router = APIRouter(prefix="/session")


@router.put("/")
def create_session(
    uncompress: bool = False,
    expiry: int = 0,
    files: list[UploadFile] = File(...),
    _user: User = USER,
) -> Any:
    """Keep a scan for a while: a file, a zip, or the files of one DICOM series."""
    sessions = app_instance().sessions()
    if sessions is None:
        raise HTTPException(406, "sessions are turned off (MONAI_LABEL_SESSIONS)")
    name = stem_of(files[0]) or "session"
    with received(*files) as paths:
        scan = paths[0]
        if scan.suffix == ".zip" or uncompress:
            scan = unpack_zip(scan, scan.with_suffix(""), name)
        elif len(paths) > 1 or scan.suffix == ".dcm":
            scan = scan.parent
        read_ct(scan, image_id=name)
        session_id, about = sessions.add_session(str(scan), expiry)
    return {"session_id": session_id, "session_info": about.to_json()}


@router.get("/{session_id}")
def get_session(
    session_id: str,
    update_ts: bool = False,
    image: bool = False,
    _user: User = USER,
) -> Any:
    """Return a session, or its scan."""
    about = session.get_session(require_session_id(session_id), update_ts)
    return responses.scan(Path(about["image"]), "session") if image else about


@router.delete("/{session_id}")
def remove_session(session_id: str, _user: User = USER) -> Any:
    """Forget a session and its scan."""
    return session.remove_session(require_session_id(session_id))
