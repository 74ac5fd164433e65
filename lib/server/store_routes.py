"""The routes to the store: scans and labels."""

from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, File, Form, HTTPException, Response, UploadFile
from fastapi.responses import FileResponse
from monailabel.endpoints import datastore
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum

from lib.server import responses
from lib.server.reader_blinding import require_label_access
from lib.server.requests import parse_params
from lib.server.roles import ADMIN, ANNOTATOR, USER, author_of
from lib.server.uploads import MAX_LABEL_BYTES, received, stem_of
from lib.storage.identifiers import require_image_id, require_tag

router = APIRouter(prefix="/datastore")


@router.get("/")
def get_store(output: Literal["all", "stats", "train"] = "stats", _user: User = USER) -> Any:
    """Return how many images are labelled, or all that is known of each, and why others are not offered."""
    found = datastore.datastore(datastore.ResultType(output))
    refused = dict(app_instance().datastore().refused_images())
    return {**found, "refused": refused} if output == "all" else found


@router.put("/")
@router.put("/image")
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


@router.delete("/")
@router.delete("/image")
def remove_image(id: str, _user: User = ADMIN) -> dict[str, str]:
    """Put an image and its labels out of the store."""
    app_instance().datastore().remove_image(require_image_id(id))
    return {}


@router.head("/image")
def check_image(image: str, check_sum: str | None = None, _user: User = USER) -> Response:
    """Answer 200 if the image is there, and has the checksum if one is given (`SHA256:...`)."""
    path = app_instance().image_path(require_image_id(image))
    if check_sum and path.is_file():
        algorithm, _, digest = check_sum.rpartition(":")
        if algorithm not in ("", "SHA256", "SHA512", "MD5"):
            raise HTTPException(400, f"{algorithm[:20]!r} is none of SHA256, SHA512, MD5")
        if file_checksum(path, algorithm or "SHA256").rpartition(":")[2] != digest:
            raise HTTPException(404, f"{image}: the checksum is another one")
    return Response()


@router.get("/image")
def get_image(image: str, _user: User = USER) -> Response:
    """Return a scan as its file; a DICOM folder as NIfTI."""
    return responses.scan(app_instance().image_path(require_image_id(image)), image)


@router.get("/image/info")
def get_image_info(image: str, _user: User = USER) -> Any:
    """Return what is known of an image."""
    app_instance().image_path(require_image_id(image))
    return app_instance().datastore().get_image_info(image)


@router.put("/image/info")
def update_image_info(image: str, info: str = Form("{}"), user: User = ANNOTATOR) -> None:
    """Remember something of an image."""
    about = {**parse_params(info), "user": user.username}
    app_instance().datastore().update_image_info(require_image_id(image), about)


@router.put("/label")
def save_label(
    image: str,
    tag: str = "final",
    params: str = Form("{}"),
    label: UploadFile = File(...),
    user: User = ANNOTATOR,
) -> dict[str, Any]:
    """Keep a label of an image.

    `doubts` say what looks wrong about it, which keeps it from judging models; `left_out` names organs that the
    label before it had.
    """
    image_id, tag = require_image_id(image), require_tag(tag or "final")
    author = author_of(user)
    about = {**parse_params(params), "user": user.username, "author": author}
    app = app_instance()

    def refuse(file: Path, reason: str) -> str:
        about = {"image": image_id, "tag": tag, "user": author}
        return str(app.datastore().refuse(file, about, reason))

    with received(label, limit_bytes=MAX_LABEL_BYTES, refuse=refuse) as (path,):
        version = app.store.submit_label(image_id, path, tag, about)
    app.on_save_label(image_id, image_id)
    return {"image": image_id, "label": image_id, **app.submission_warnings(version)}


@router.delete("/label")
def remove_label(id: str, tag: str, _user: User = ADMIN) -> dict[str, str]:
    """Put one label of an image out of the store."""
    app_instance().datastore().remove_label(require_image_id(id), require_tag(tag))
    return {}


@router.head("/label")
def check_label(image: str, tag: str, _user: User = USER) -> Response:
    """Answer 200 if the label is there."""
    app_instance().label_path(require_image_id(image), require_tag(tag))
    return Response()


@router.get("/label")
def get_label(label: str, tag: str, user: User = USER) -> Response:
    """Return a label as its file; not to those who are to draw their own first."""
    app = app_instance()
    path = app.label_path(require_image_id(label), require_tag(tag))
    require_label_access(app, label, tag, user, is_version=False)
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


@router.get("/label/info")
def get_label_info(label: str, tag: str, _user: User = USER) -> Any:
    """Return what is known of a label."""
    app_instance().label_path(require_image_id(label), require_tag(tag))
    return app_instance().datastore().get_label_info(label, tag)


@router.put("/label/info")
def update_label_info(label: str, tag: str, info: str = Form("{}"), user: User = ANNOTATOR) -> None:
    """Remember something of a label."""
    about = {**parse_params(info), "user": user.username}
    store = app_instance().datastore()
    store.update_label_info(require_image_id(label), require_tag(tag), about)


@router.put("/updatelabelinfo")
def update_label_info_of_reviewer(
    label: str, tag: str, params: str = Form("{}"), user: User = ANNOTATOR
) -> None:
    """Remember something of a label, as Slicer's reviewer module asks for it."""
    update_label_info(label, tag, params, user)
