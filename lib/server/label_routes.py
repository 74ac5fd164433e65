"""The routes to the history of labels, and to what was refused."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.datastores.local import FolderStore
from lib.errors import DatastoreError
from lib.server.reader_blinding import require_label_access
from lib.server.roles import ADMIN, REVIEWER, USER, author_of
from lib.storage.identifiers import require_image_id, require_tag
from lib.storage.tables import LabelVersion

router = APIRouter(prefix="/organnet")


def _store() -> FolderStore:
    store: FolderStore = app_instance().datastore()
    return store


def _about(version: LabelVersion, versions: list[LabelVersion]) -> dict[str, Any]:
    """Return what a reviewer may know of a version."""
    parent = next((v.number for v in versions if v.id == version.parent_id), None)
    return {
        "image": version.image_id,
        "tag": version.tag,
        "number": version.number,
        "parent": parent,
        "sha256": version.digest,
        "source": version.source,
        "author": version.author,
        "client": version.client,
        "model_version": version.model_version,
        "organs": version.organs,
        "info": version.info,
        "submitted_at": version.submitted_at.isoformat(),
        "hidden_at": None if version.hidden_at is None else version.hidden_at.isoformat(),
    }


@router.get("/labels")
def get_labels(tag: str = "final", image: str | None = None, _user: User = USER) -> dict[str, Any]:
    """Return the current version of each image, or of one, and the files in the folder that are no labels."""
    store = _store()
    tag = require_tag(tag)
    if image is None:
        versions = store.history.current(tag)
    else:
        # A viewer asks every few seconds, and of its own image alone.
        newest = store.history.newest(require_image_id(image), tag)
        versions = [] if newest is None else [newest]
    refused = [
        {"image": one.image_id, "tag": one.tag, "file": one.path.name, "reason": one.reason}
        for one in store.refused_files()
        if image in (None, one.image_id)
    ]
    listed = [
        {key: value for key, value in _about(version, []).items() if key not in ("parent", "info")}
        for version in versions
    ]
    return {"labels": listed, "refused": refused}


@router.get("/labels/{image}")
def get_history(image: str, tag: str = "final", _user: User = USER) -> list[dict[str, Any]]:
    """Return every version of an image's label, hidden ones too, oldest first."""
    versions = _store().history.history(require_image_id(image), require_tag(tag))
    if not versions:
        raise DatastoreError(f"{image}: there never was a label with the tag {tag!r}")
    return [_about(version, versions) for version in versions]


@router.get("/labels/{image}/{number}")
def get_version(image: str, number: int, tag: str = "final", user: User = USER) -> Response:
    """Return the file of one version; not to those who are to draw their own first."""
    history = _store().history
    version = history.version(require_image_id(image), require_tag(tag), number)
    require_label_access(app_instance(), image, tag, user, is_version=True)
    name = f"{image}-{tag}-{number}.nii.gz"
    path = history.path(version.digest)
    if not path.is_file():
        raise DatastoreError(f"{image}: the volume of version {number} is gone; restore a backup")
    return FileResponse(path, media_type="application/octet-stream", filename=name)


@router.post("/labels/{image}/{number}/restore")
def restore_version(
    image: str, number: int, tag: str = "final", user: User = REVIEWER
) -> dict[str, Any]:
    """Make an older version the current one again; what it replaces stays in the history."""
    store = _store()
    image_id, tag = require_image_id(image), require_tag(tag)
    version = store.restore_label(image_id, tag, number, author_of(user))
    app_instance().on_save_label(image_id, image_id)
    return _about(version, store.history.history(image_id, tag))


@router.get("/quarantine")
def get_quarantine(_user: User = ADMIN) -> list[dict[str, Any]]:
    """Return what was refused, by whom and why, newest first."""
    return _store().quarantine.entries()


@router.get("/quarantine/{name}")
def get_refused_file(name: str, _user: User = ADMIN) -> Response:
    """Return one refused file."""
    path = _store().quarantine.file(name)
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)
