"""Routes to scans and labels under MONAI Label's addresses."""

from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import FileResponse
from monailabel.endpoints.user.auth import User
from monailabel.utils.others.generic import file_checksum
from pydantic import BaseModel, RootModel

from lib.imaging.formats import require_signature
from lib.server.access import (
    ADMIN,
    ANNOTATOR,
    KNOWN_IMAGE,
    USER,
    author_of,
    image_info,
    organs_left_out,
    require_label_access,
)
from lib.server.bodies import StrictRoute
from lib.server.requests import MAX_LABEL_BYTES, parse_params, received, stem_of
from lib.server.responses import BYTES, ERRORS, NO_BODY, NULL, file_of, scan_file
from lib.server.running_app import get_app
from lib.storage.identifiers import require_image_id, require_tag

router = APIRouter(prefix="/datastore", responses=ERRORS, route_class=StrictRoute)


class DatastoreCounts(BaseModel):
    """Numbers of images, of images with a final label, and of labels by tag."""

    total: int
    completed: int
    label_tags: dict[str, int]


class LabelledImage(BaseModel):
    """An image and its final label, as paths in the studies folder."""

    id: str
    image: str
    label: str


class StoredFile(BaseModel):
    """File suffix and free-form information of an image or a label."""

    ext: str
    info: dict[str, Any]


class StoredImage(BaseModel):
    """An image, and its labels by tag."""

    image: StoredFile
    labels: dict[str, StoredFile]


class DatastoreContents(BaseModel):
    """All images by id; `refused` gives the reason why further ones cannot be contoured."""

    name: str
    description: str
    images_dir: str
    labels_dir: str
    objects: dict[str, StoredImage]
    refused: dict[str, str]


class AddedImage(BaseModel):
    """Id of the stored image."""

    image: str


class SubmittedLabel(BaseModel):
    """The stored label: number of its version, and the organs in it.

    `changes` describe each difference between what was sent and what is stored: organs renamed or not stored,
    values mapped, overlaps decided. `doubts` describe implausible properties; such a label is not used for
    comparing models. `left_out` names organs that the previous version had. `unchanged_from` is the model whose
    contours the label equals voxel by voxel: they were accepted unchanged.
    """

    image: str
    label: str
    number: int
    organs: list[str]
    changes: list[str]
    doubts: list[str]
    left_out: list[str]
    unchanged_from: str | None


class Removed(BaseModel):
    """An empty object."""


class Info(RootModel[dict[str, Any]]):
    """Free-form information about an image or a label."""


@router.get("/", response_model=DatastoreCounts | DatastoreContents | list[LabelledImage])
def get_store(output: Literal["all", "stats", "train"] = "stats", _user: User = USER) -> Any:
    """Return the numbers of images and labels, all images, or the labelled images."""
    store = get_app().store
    if output == "all":
        return Response(store.json_text(), media_type="application/json")
    if output == "train":
        return [LabelledImage(**case) for case in store.datalist(full_path=False)]
    return DatastoreCounts(**store.status())


@router.put("/")
@router.put("/image")
def add_image(
    image: str | None = None,
    params: str = Form("{}"),
    file: UploadFile = File(...),
    user: User = ANNOTATOR,
) -> AddedImage:
    """Store a scan: one file, or a zip of one DICOM series."""
    image_id = require_image_id(image or stem_of(file))
    about = {**parse_params(params), "user": user.username}
    with received(file) as (path,):
        return AddedImage(image=get_app().store.add_image(image_id, str(path), about))


@router.delete("/")
@router.delete("/image")
def remove_image(id: str, _user: User = ADMIN) -> Removed:
    """Remove an image and its labels from the store; the files are set aside, not deleted."""
    get_app().store.remove_image(require_image_id(id))
    return Removed()


@router.head("/image", response_class=Response, responses=NO_BODY)
def check_image(image: str, check_sum: str | None = None, _user: User = USER) -> Response:
    """Answer 200 if the image exists, and has the checksum if one is given (`SHA256:...`)."""
    path = get_app().store.require_image(require_image_id(image))
    if check_sum and path.is_file():
        algorithm, _, digest = check_sum.rpartition(":")
        if algorithm not in ("", "SHA256", "SHA512", "MD5"):
            raise HTTPException(
                400, f"unknown checksum {algorithm[:20]!r}; expected SHA256, SHA512 or MD5"
            )
        require_signature(path, image)
        if file_checksum(path, algorithm or "SHA256").rpartition(":")[2] != digest:
            raise HTTPException(404, f"{image}: the stored image has another checksum")
    return Response()


@router.get("/image", response_class=Response, responses=file_of(BYTES))
def get_image(image: str, _user: User = USER) -> Response:
    """Return a scan as its file; a DICOM folder as NIfTI."""
    return scan_file(get_app().store.require_image(require_image_id(image)), image)


@router.get("/image/info")
def get_image_info(request: Request, _user: User = USER, image: str = KNOWN_IMAGE) -> Info:
    """Return the information about an image; `path` only to a client on the server's machine."""
    return Info(image_info(request, image))


@router.put("/image/info", responses=NULL)
def update_image_info(image: str, info: str = Form("{}"), user: User = ANNOTATOR) -> None:
    """Add to the information about an image."""
    about = {**parse_params(info), "user": user.username}
    get_app().store.update_image_info(require_image_id(image), about)


@router.put("/label")
def save_label(
    image: str,
    tag: str = "final",
    params: str = Form("{}"),
    label: UploadFile = File(...),
    user: User = ANNOTATOR,
) -> SubmittedLabel:
    """Submit a label of an image."""
    image_id, tag = require_image_id(image), require_tag(tag or "final")
    author = author_of(user)
    about = {**parse_params(params), "user": user.username, "author": author}
    app = get_app()

    def refuse(file: Path, reason: str) -> str:
        about = {"image": image_id, "tag": tag, "user": author}
        return app.store.submissions.refuse(file, about, reason)

    with received(label, limit_bytes=MAX_LABEL_BYTES, refuse=refuse) as (path,):
        version = app.store.submissions.submit(image_id, tag, path, about)
    return SubmittedLabel(
        image=image_id,
        label=image_id,
        number=version.number,
        organs=version.organs,
        changes=version.changes,
        doubts=version.doubts,
        left_out=organs_left_out(app, version),
        unchanged_from=version.unchanged_from,
    )


@router.delete("/label")
def remove_label(id: str, tag: str, _user: User = ADMIN) -> Removed:
    """Remove one label of an image from the store; its versions are hidden, not deleted."""
    get_app().store.remove_label(require_image_id(id), require_tag(tag))
    return Removed()


@router.head("/label", response_class=Response, responses=NO_BODY)
def check_label(image: str, tag: str, _user: User = USER) -> Response:
    """Answer 200 if the label exists."""
    get_app().store.require_label(require_image_id(image), require_tag(tag))
    return Response()


@router.get("/label", response_class=FileResponse, responses=file_of(BYTES))
def get_label(label: str, tag: str, user: User = USER) -> FileResponse:
    """Return a label as its file; hidden from readers of a reader study who have not submitted."""
    app = get_app()
    path = app.store.require_label(require_image_id(label), require_tag(tag))
    require_label_access(app, label, tag, user, is_version=False)
    require_signature(path, label)
    return FileResponse(path, media_type=BYTES, filename=path.name)


@router.get("/label/info")
def get_label_info(label: str, tag: str, _user: User = USER) -> Info:
    """Return the information about a label."""
    store = get_app().store
    store.require_label(require_image_id(label), require_tag(tag))
    return Info(store.get_label_info(label, tag))


@router.put("/label/info", responses=NULL)
def update_label_info(label: str, tag: str, info: str = Form("{}"), user: User = ANNOTATOR) -> None:
    """Add to the information about a label."""
    about = {**parse_params(info), "user": user.username}
    get_app().store.update_label_info(require_image_id(label), require_tag(tag), about)


@router.put("/updatelabelinfo", responses=NULL)
def update_label_info_of_reviewer(
    label: str, tag: str, params: str = Form("{}"), user: User = ANNOTATOR
) -> None:
    """Add to the information about a label, under the address that Slicer's reviewer module uses."""
    update_label_info(label, tag, params, user)
