"""Our own of MONAI Label's routes.

The paths, forms and answers are MONAI Label 0.8.5's, which both clients know. What differs: these are
synchronous, so that they run on threads and one infer does not block every other request (defect 9); ids,
tags and parameters are checked before anything is done with them (defect 11); what was uploaded is removed
whatever happens (defect 26).
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, File, Form, HTTPException, Response, UploadFile
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints import activelearning, info, session, train
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from requests_toolbelt import MultipartEncoder

from lib.archives import unpack
from lib.errors import ConfigError
from lib.names import require_image_id, require_session_id, require_tag
from lib.scans import read_ct, write_ct
from lib.server.requests import INFER_KEYS, STRATEGY_KEYS, TRAIN_KEYS, only, parse_params
from lib.server.uploads import received, stem_of

router = APIRouter()

USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
OUTPUTS = ("all", "image", "json")


@router.get("/info/")
def get_info(_user: User = USER) -> Any:
    """Return what the app offers: models, trainers, strategies, the state of the store."""
    return info.app_info()


@router.post("/infer/{model}")
def infer(
    model: str,
    image: str = "",
    session_id: str = "",
    output: str = "all",
    params: str = Form("{}"),
    file: UploadFile | None = File(None),
    _user: User = USER,
) -> Response:
    """Contour an image of the store, of a session, or of the request."""
    if output not in OUTPUTS:
        raise ConfigError(f"output={output!r} is none of {', '.join(OUTPUTS)}")
    request = {**only(parse_params(params), INFER_KEYS), "model": model, "image": image}
    if file is not None and not session_id:
        with received(file) as (path,):
            return _infer_scan(request, path, stem_of(file) or "upload", output)
    if session_id:
        found = app_instance().sessions().get_session(require_session_id(session_id))
        if found is None:
            raise HTTPException(404, f"session {session_id}: not found, or expired")
        return _answer(
            app_instance().infer({**request, "scan": found.image, "image": image or "session"}),
            output,
        )
    if not image:
        raise ConfigError("infer needs an image id (?image=), a session (?session_id=) or a file")
    return _answer(app_instance().infer(request), output)


def _infer_scan(request: dict[str, Any], path: Path, name: str, output: str) -> Response:
    if path.suffix == ".zip":
        path = unpack(path, path.with_suffix(""), name)
    return _answer(app_instance().infer({**request, "scan": str(path), "image": name}), output)


def _answer(result: dict[str, Any], output: str) -> Response:
    """Return the label and its parameters as the client asked for them, and remove the label's file."""
    path = Path(result["file"])
    try:
        content, params = path.read_bytes(), result["params"]
    finally:
        if result["is_temporary"]:
            shutil.rmtree(path.parent, ignore_errors=True)
    if output == "json":
        return Response(json.dumps(params), media_type="application/json")
    if output == "image":
        disposition = {"Content-Disposition": f'attachment; filename="{path.name}"'}
        return Response(content, media_type="application/octet-stream", headers=disposition)
    form = MultipartEncoder(
        fields={
            "params": (None, json.dumps(params), "application/json"),
            "image": (path.name, content, "application/octet-stream"),
        }
    )
    return Response(form.to_string(), media_type=form.content_type)


@router.post("/activelearning/{strategy}")
def next_sample(strategy: str, params: dict[str, Any] | None = None, user: User = USER) -> Any:
    """Return the image to contour next; `{}` where all are labelled."""
    return activelearning.sample(strategy, only(params, STRATEGY_KEYS), user.username)


@router.put("/datastore/")
@router.put("/datastore/image")
def add_image(
    image: str | None = None,
    params: str = Form("{}"),
    file: UploadFile = File(...),
    user: User = ANNOTATOR,
) -> dict[str, str]:
    """Keep a scan: a file, or a zip of one DICOM series."""
    image_id = require_image_id(image or stem_of(file))
    about = {**parse_params(params), "user": user.username}
    with received(file) as (path,):
        return {"image": app_instance().datastore().add_image(image_id, str(path), about)}


@router.get("/datastore/image")
def get_image(image: str, _user: User = USER) -> Response:
    """Return a scan as its file; a DICOM folder as NIfTI, which is what the clients can load."""
    path = app_instance().datastore().require_image(require_image_id(image))
    if path.is_file():
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)
    with tempfile.TemporaryDirectory(prefix="organnet-") as folder:
        converted = Path(folder) / f"{image}.nii.gz"
        write_ct(converted, read_ct(path, image_id=image))
        disposition = {"Content-Disposition": f'attachment; filename="{converted.name}"'}
        return Response(
            converted.read_bytes(), media_type="application/octet-stream", headers=disposition
        )


@router.put("/datastore/label")
def save_label(
    image: str,
    tag: str = "final",
    params: str = Form("{}"),
    label: UploadFile = File(...),
    user: User = ANNOTATOR,
) -> dict[str, str]:
    """Keep a label of an image."""
    require_image_id(image)
    about = {**parse_params(params), "user": user.username}
    app = app_instance()
    with received(label) as (path,):
        label_id = app.datastore().save_label(image, str(path), require_tag(tag or "final"), about)
    return {**(app.on_save_label(image, label_id) or {}), "image": image, "label": label_id}


@router.delete("/datastore/")
@router.delete("/datastore/image")
def remove_image(id: str, _user: User = ADMIN) -> dict[str, str]:
    """Remove an image and its labels."""
    store = app_instance().datastore()
    store.require_image(require_image_id(id))
    store.remove_image(id)
    return {}


@router.delete("/datastore/label")
def remove_label(id: str, tag: str, _user: User = ADMIN) -> dict[str, str]:
    """Remove one label of an image."""
    store = app_instance().datastore()
    store.require_image(require_image_id(id))
    store.remove_label(id, require_tag(tag))
    return {}


@router.put("/session/")
def create_session(
    uncompress: bool = False,
    expiry: int = 0,
    files: list[UploadFile] = File(...),
    _user: User = USER,
) -> Any:
    """Keep a scan for a while, outside the store: a file, a zip, or the files of one DICOM series."""
    name = stem_of(files[0]) or "session"
    with received(*files) as paths:
        scan = paths[0]
        if scan.suffix == ".zip" or uncompress:
            scan = unpack(scan, scan.with_suffix(""), name)
        elif len(paths) > 1 or scan.suffix == ".dcm":
            scan = scan.parent
        read_ct(scan, image_id=name)
        session_id, about = app_instance().sessions().add_session(str(scan), expiry)
    return {"session_id": session_id, "session_info": about.to_json()}


@router.get("/session/{session_id}")
def get_session(
    session_id: str,
    update_ts: bool = False,
    image: bool = False,
    _user: User = USER,
) -> Any:
    """Return a session, or its scan."""
    return session.get_session(require_session_id(session_id), update_ts, image)


@router.delete("/session/{session_id}")
def remove_session(session_id: str, _user: User = USER) -> Any:
    """Forget a session and its scan."""
    return session.remove_session(require_session_id(session_id))


@router.get("/train/")
def train_status(
    all: bool = False,
    check_if_running: bool = False,
    _user: User = USER,
) -> Any:
    """Return the last training; 404 where there is none, or none is running."""
    return train.status(all, check_if_running)


@router.post("/train/")
def train_all(params: dict[str, Any] | None = None, _user: User = ADMIN) -> Any:
    """Start every trainer; OHIF calls this one, with nothing in it."""
    return train.run(only(params, TRAIN_KEYS))


@router.post("/train/{model}")
def train_model(
    model: str,
    params: dict[str, Any] | None = None,
    enqueue: bool = False,
    _user: User = ADMIN,
) -> Any:
    """Start a trainer in a process of its own; 429 where one is running."""
    app_instance().require_trainer(model)
    return train.run_model(model, only(params, TRAIN_KEYS), run_sync=False, enqueue=enqueue)


@router.delete("/train/")
def stop_training(_user: User = ADMIN) -> Any:
    """Stop the training that runs; the next one goes on from its last epoch."""
    return train.stop()
