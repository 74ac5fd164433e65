"""The routes that contour and choose.

The paths, forms and answers of all our routes are MONAI Label 0.8.5's, which both clients know. What differs:
they are synchronous, so that they run on threads and one infer does not block every other request (defect 9);
ids, tags and parameters are checked before anything is done with them (defect 11); what was uploaded is
removed whatever happens (defect 26).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, File, Form, HTTPException, Response, UploadFile
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.dicom.objects import Kind
from lib.errors import ConfigError
from lib.imaging.formats import unpack_zip
from lib.server import dicom_objects, responses
from lib.server.requests import INFER_KEYS, only, parse_params, strategy_options
from lib.server.roles import USER, author_of, holder_of
from lib.server.uploads import received, stem_of
from lib.storage.identifiers import require_session_id

router = APIRouter()

Output = responses.Output | Literal["dicom_seg", "rtstruct"]
KINDS: Mapping[Output, Kind] = {"dicom_seg": "seg", "rtstruct": "rtstruct"}


@router.get("/info/")
def get_info(_user: User = USER) -> Any:
    """Return what the app offers: models, trainers, strategies, the state of the store."""
    return app_instance().info()


@router.post("/infer/{model}")
def infer(
    model: str,
    image: str = "",
    session_id: str = "",
    output: Output = "all",
    params: str = Form("{}"),
    file: UploadFile | None = File(None),
    user: User = USER,
) -> Response:
    """Contour an image of the store, of a session, or of the request."""
    given = parse_params(params)
    request = {**only(given, INFER_KEYS), "model": model, "image": image}
    request["author"] = author_of(user)
    if session_id:
        request |= {"scan": _session_scan(session_id), "image": "session"}
        return _contours(request, output)
    if file is not None:
        with received(file) as (path,):
            name = stem_of(file) or "upload"
            scan = unpack_zip(path, path.with_suffix(""), name) if path.suffix == ".zip" else path
            request |= {"scan": str(scan), "image": name}
            return _contours(request, output)
    if not image:
        raise ConfigError("infer needs an image id (?image=), a session (?session_id=) or a file")
    app_instance().assignments.renew_lease(image, holder_of(user, given.get("client_id")))
    return _contours(request, output)


def _contours(request: Mapping[str, Any], output: Output) -> Response:
    if output == "dicom_seg" or output == "rtstruct":
        return dicom_objects.inferred(app_instance(), request, KINDS[output])
    return responses.contours(app_instance().infer(request), output)


def _session_scan(session_id: str) -> str:
    sessions = app_instance().sessions()
    if sessions is None:
        raise HTTPException(406, "sessions are turned off (MONAI_LABEL_SESSIONS)")
    found = sessions.get_session(require_session_id(session_id))
    if found is None:
        raise HTTPException(404, f"session {session_id}: not found, or expired")
    return str(Path(found.image))


@router.post("/activelearning/{strategy}")
def next_sample(strategy: str, params: dict[str, Any] | None = None, user: User = USER) -> Any:
    """Lease the image to contour next to whoever asks; without `id`, and with `why`, where there is none."""
    wishes = strategy_options(params)
    holder = holder_of(user, wishes.get("client_id"))
    return app_instance().next_sample({**wishes, "strategy": strategy, "holder": holder})
