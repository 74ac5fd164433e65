"""The routes that hand out a label: as a DICOM object, or as a volume."""

from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Response
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.dicom.objects import Kind
from lib.errors import ConfigError, DatastoreError, StateError
from lib.imaging.dicom_series import read_headers, require_series
from lib.labels.history import FINAL
from lib.pacs_sync.dicom_export import provenance_of
from lib.server import responses
from lib.server.dicom_objects import answer
from lib.server.reader_blinding import require_label_access
from lib.server.roles import ANNOTATOR, USER
from lib.storage.identifiers import require_image_id, require_tag
from lib.storage.tables import LabelVersion

Format = Literal["seg", "rtstruct", "nrrd"]

router = APIRouter(prefix="/organnet")


@router.get("/export/{image}")
def export_label(
    image: str,
    format: Format = "seg",
    tag: str = "final",
    version: int | None = None,
    user: User = USER,
) -> Response:
    """Return a label, the current one or a version; to those who may see it.

    DICOM SEG or RTSTRUCT where the scan is a DICOM series; NRRD, on the scan's voxels, of any.
    """
    kept, file = _kept(image, tag, version, user)
    if format == "nrrd":
        return responses.label(file, _name_of(kept), image_id=image)
    return _as_dicom(kept, file, format)


@router.post("/export/{image}/pacs")
def send_label(
    image: str,
    format: Kind = "rtstruct",
    tag: str = "final",
    version: int | None = None,
    user: User = ANNOTATOR,
) -> dict[str, str]:
    """Store a label in the PACS now, as `export_label` returns it; final ones get there by themselves."""
    app = app_instance()
    if app.pacs_sync is None:
        raise ConfigError(
            f"{image}: this server's studies lie in a folder, so there is no PACS to send to; GET the object "
            f"from /organnet/export/{image}, and store it with your PACS's tools"
        )
    kept, file = _kept(image, tag, version, user)
    if kept.tag == FINAL and not app.assignments.is_visible_to_all(kept):
        raise StateError(
            f"{image}: in a reader study that is not complete, and in the PACS everybody would see the label; "
            "it is sent when all have submitted"
        )
    content = bytes(_as_dicom(kept, file, format).body)
    return {
        "image": image,
        "format": format,
        "sop_instance_uid": app.pacs_sync.store_object(content),
    }


def _kept(image: str, tag: str, number: int | None, user: User) -> tuple[LabelVersion, Path]:
    """Return a version of a label, and its volume."""
    app = app_instance()
    image_id, tag = require_image_id(image), require_tag(tag)
    app.image_path(image_id)
    kept = (
        app.label_history.newest(image_id, tag)
        if number is None
        else app.label_history.version(image_id, tag, number)
    )
    if kept is None:
        raise DatastoreError(f"{image_id}: there is no label with the tag {tag!r}")
    require_label_access(app, image_id, tag, user, is_version=number is not None)
    file = app.label_history.path(kept.digest)
    if not file.is_file():
        raise DatastoreError(
            f"{image_id}: the volume of version {kept.number} is gone; restore a backup"
        )
    return kept, file


def _as_dicom(kept: LabelVersion, file: Path, kind: Kind) -> Response:
    app, image_id = app_instance(), kept.image_id
    folder = require_series(app.image_path(image_id), image_id)
    headers, _ = read_headers(folder, image_id=image_id)
    return answer(
        kind,
        file,
        app.config.recipe.labels,
        headers,
        provenance_of(kept, kind, str(headers[0].SeriesInstanceUID)),
        image_id=image_id,
        name=_name_of(kept),
    )


def _name_of(kept: LabelVersion) -> str:
    return f"{kept.image_id}-{kept.tag}-{kept.number}"
