"""The route that hands out a label as a DICOM object."""

from fastapi import APIRouter, Response
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.datastores.exported import about_version
from lib.dicom.objects import Kind
from lib.dicom.series import read_headers, require_series
from lib.errors import DatastoreError
from lib.names import require_image_id, require_tag
from lib.server.blinding import require_sight
from lib.server.dicom_objects import answer
from lib.server.roles import USER

router = APIRouter(prefix="/organnet")


@router.get("/export/{image}")
def export_label(
    image: str,
    format: Kind = "seg",
    tag: str = "final",
    version: int | None = None,
    user: User = USER,
) -> Response:
    """Return a label as DICOM SEG or RTSTRUCT, the current one or a version; to those who may see it."""
    app = app_instance()
    image_id, tag = require_image_id(image), require_tag(tag)
    folder = app.image_path(image_id)
    kept = (
        app.labels_kept.newest(image_id, tag)
        if version is None
        else app.labels_kept.version(image_id, tag, version)
    )
    if kept is None:
        raise DatastoreError(f"{image_id}: there is no label with the tag {tag!r}")
    require_sight(app, image_id, tag, user, is_version=version is not None)
    file = app.labels_kept.path(kept.digest)
    if not file.is_file():
        raise DatastoreError(
            f"{image_id}: the volume of version {kept.number} is gone; restore a backup"
        )
    headers, _ = read_headers(require_series(folder, image_id), image_id=image_id)
    return answer(
        format,
        file,
        app.config.recipe.labels,
        headers,
        about_version(kept, format, str(headers[0].SeriesInstanceUID)),
        image_id=image_id,
        name=f"{image_id}-{tag}-{kept.number}",
    )
