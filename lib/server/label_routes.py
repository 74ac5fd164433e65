"""Routes to label versions, their export as DICOM or NRRD, and the quarantine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict, Field

from lib.dicom.objects import Kind
from lib.errors import ConfigError, DatastoreError, StateError
from lib.imaging.dicom_series import read_headers, require_series
from lib.labels.history import FINAL
from lib.pacs_sync.dicom_labels import provenance_of
from lib.server.access import (
    ADMIN,
    ANNOTATOR,
    KNOWN_IMAGE,
    REVIEWER,
    USER,
    author_of,
    require_label_access,
)
from lib.server.bodies import StrictRoute
from lib.server.responses import (
    BYTES,
    DICOM,
    ERRORS,
    IsoTime,
    RowAnswer,
    file_of,
    label_as_dicom,
    label_as_nrrd,
)
from lib.server.running_app import RunningApp, get_app
from lib.storage.identifiers import require_image_id, require_tag
from lib.storage.tables import LabelVersion

Format = Literal["seg", "rtstruct", "nrrd"]

router = APIRouter(prefix="/organnet", responses=ERRORS, route_class=StrictRoute)


class Version(RowAnswer):
    """A version of a label; `hidden_at` is set if it was removed.

    `changes` describe each difference between what was sent and what is stored, `doubts` implausible
    properties. `unchanged_from` is the model whose contours were accepted unchanged, voxel by voxel; null if
    they were changed, or the run is not known any more.
    """

    image: str = Field(validation_alias="image_id")
    tag: str
    number: int
    sha256: str = Field(validation_alias="digest")
    source: str
    author: str
    client: str
    model_version: str | None
    organs: list[str]
    changes: list[str]
    doubts: list[str]
    unchanged_from: str | None
    submitted_at: IsoTime
    hidden_at: IsoTime | None


class VersionInHistory(Version):
    """A version with the number of the version that it replaced, and the information that the client sent."""

    parent: int | None
    info: dict[str, Any]


class RefusedFile(BaseModel):
    """A file in the labels folder that is not a valid label."""

    image: str
    tag: str
    file: str
    reason: str


class Labels(BaseModel):
    """Current labels, and invalid files in the labels folder; `total` is the number of labels on all pages."""

    total: int
    labels: list[Version]
    refused: list[RefusedFile]


class QuarantinedFile(BaseModel):
    """A refused submission; only name and reason are present if its record cannot be read."""

    model_config = ConfigDict(extra="allow")
    name: str
    image: str = ""
    tag: str = ""
    user: str = ""
    reason: str
    at: str = ""
    file: str = ""
    sha256: str = ""
    bytes: int = 0
    is_whole: bool = True


class SentObject(BaseModel):
    """The DICOM object that was stored in the PACS."""

    image: str
    format: Kind
    sop_instance_uid: str


def _in_history(version: LabelVersion, versions: Sequence[LabelVersion]) -> VersionInHistory:
    parent = next((v.number for v in versions if v.id == version.parent_id), None)
    values = Version.model_validate(version).model_dump()
    return VersionInHistory(**values, parent=parent, info=version.info)


@router.get("/labels")
def get_labels(
    tag: str = "final",
    image: str | None = None,
    limit: int = Query(1000, ge=1, le=10_000),
    offset: int = Query(0, ge=0),
    _user: User = USER,
) -> Labels:
    """Return the current labels sorted by image, or that of one, and the invalid files in the labels folder.

    At most `limit` labels are returned, from number `offset` on.
    """
    app = get_app()
    tag = require_tag(tag)
    if image is None:
        versions = app.label_history.current(tag)
    else:
        # Viewers request the labels of their image every few seconds, so only that image is looked up.
        newest = app.label_history.newest(require_image_id(image), tag)
        versions = [] if newest is None else [newest]
    refused = [
        RefusedFile(
            image=item.file.image_id,
            tag=item.file.tag,
            file=item.file.path.name,
            reason=item.reason,
        )
        for item in app.store.watcher.refused()
        if image in (None, item.file.image_id)
    ]
    page = versions[offset : offset + limit]
    current = [Version.model_validate(version) for version in page]
    return Labels(total=len(versions), labels=current, refused=refused)


@router.get("/labels/{image}")
def get_history(image: str, tag: str = "final", _user: User = USER) -> list[VersionInHistory]:
    """Return every version of an image's label, hidden ones too, oldest first."""
    versions = get_app().label_history.history(require_image_id(image), require_tag(tag))
    if not versions:
        raise DatastoreError(f"{image}: no label with the tag {tag!r} was ever submitted")
    return [_in_history(version, versions) for version in versions]


@router.get("/labels/{image}/{number}", response_class=FileResponse, responses=file_of(BYTES))
def get_version(image: str, number: int, tag: str = "final", user: User = USER) -> FileResponse:
    """Return the file of one version; hidden from readers of a reader study who have not submitted."""
    app = get_app()
    _, file = _version(app, image, tag, number, user)
    return FileResponse(file, media_type=BYTES, filename=f"{image}-{tag}-{number}.nii.gz")


@router.post("/labels/{image}/{number}/restore")
def restore_version(
    image: str, number: int, tag: str = "final", user: User = REVIEWER
) -> VersionInHistory:
    """Make an older version the current one again, as a new version; the history keeps all versions."""
    app = get_app()
    image_id, tag = require_image_id(image), require_tag(tag)
    app.store.image_location(image_id)
    version = app.store.submissions.restore(image_id, tag, number, author_of(user))
    return _in_history(version, app.label_history.history(image_id, tag))


@router.get(
    "/export/{image}",
    response_class=Response,
    responses=file_of(DICOM, BYTES),
)
def export_label(
    user: User = USER,
    image: str = KNOWN_IMAGE,
    format: Format = "seg",
    tag: str = "final",
    version: int | None = None,
) -> Response:
    """Return the current label or a version as DICOM SEG, RTSTRUCT or NRRD.

    SEG and RTSTRUCT need a scan that is a DICOM series. NRRD lies on the scan's voxels. Hidden from readers of
    a reader study who have not submitted.
    """
    app = get_app()
    label, file = _version(app, image, tag, version, user)
    if format == "nrrd":
        return label_as_nrrd(file, _file_stem(label), image_id=image)
    return _as_dicom(app, label, file, format)


@router.post("/export/{image}/pacs")
def send_label(
    image: str,
    format: Kind = "rtstruct",
    tag: str = "final",
    version: int | None = None,
    user: User = ANNOTATOR,
) -> SentObject:
    """Store a label in the PACS now, as `export_label` returns it; final labels are also sent automatically."""
    app = get_app()
    if app.pacs_sync is None:
        raise ConfigError(
            f"{image}: this server's studies are in a folder, so there is no PACS to send to; GET the object "
            f"from /organnet/export/{image}, and store it with your PACS's tools"
        )
    app.store.require_image(require_image_id(image))
    label, file = _version(app, image, tag, version, user)
    if label.tag == FINAL and not app.assignments.is_visible_to_all(label):
        raise StateError(
            f"{image}: its reader study is not complete, and every reader would see the label in the PACS; "
            "it is sent when all readers have submitted"
        )
    content = bytes(_as_dicom(app, label, file, format).body)
    uid = app.pacs_sync.store_object(content)
    return SentObject(image=image, format=format, sop_instance_uid=uid)


def _version(
    app: RunningApp, image: str, tag: str, number: int | None, user: User
) -> tuple[LabelVersion, Path]:
    """Return a version of a label, the current one without `number`, and its volume."""
    image_id, tag = require_image_id(image), require_tag(tag)
    history = app.label_history
    if number is None:
        version = history.newest(image_id, tag)
        if version is None:
            raise DatastoreError(f"{image_id}: there is no label with the tag {tag!r}")
    else:
        version = history.version(image_id, tag, number)
    require_label_access(app, image_id, tag, user, is_version=number is not None)
    file = history.path(version.digest)
    if not file.is_file():
        raise DatastoreError(
            f"{image_id}: the volume of version {version.number} is missing; restore a backup"
        )
    return version, file


def _as_dicom(app: RunningApp, version: LabelVersion, file: Path, kind: Kind) -> Response:
    image_id = version.image_id
    folder = require_series(app.store.require_image(image_id), image_id)
    headers, _ = read_headers(folder, image_id=image_id)
    about = provenance_of(version, kind, str(headers[0].SeriesInstanceUID))
    return label_as_dicom(
        kind,
        file,
        app.config.recipe.labels,
        headers,
        about,
        image_id=image_id,
        name=_file_stem(version),
    )


def _file_stem(version: LabelVersion) -> str:
    return f"{version.image_id}-{version.tag}-{version.number}"


@router.get("/quarantine", response_model_exclude_unset=True)
def get_quarantine(_user: User = ADMIN) -> list[QuarantinedFile]:
    """Return the refused submissions with user and reason, newest first."""
    return [QuarantinedFile(**entry) for entry in get_app().store.quarantine.entries()]


@router.get("/quarantine/{name}", response_class=FileResponse, responses=file_of(BYTES))
def get_refused_file(name: str, _user: User = ADMIN) -> FileResponse:
    """Return one refused file."""
    path = get_app().store.quarantine.file(name)
    return FileResponse(path, media_type=BYTES, filename=path.name)
