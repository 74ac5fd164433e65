"""The routes to OHIF: its files, each by its name alone (defect 11), with cures where they need some."""

from pathlib import PurePosixPath

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse
from monailabel.endpoints.user.auth import User

from lib.server.ohif.bundle_files import PAGE, ServedFile, served
from lib.server.roles import USER

router = APIRouter(prefix="/ohif", include_in_schema=False)
without_pacs = APIRouter(prefix="/ohif", include_in_schema=False)

_HEADERS = {
    # Whatever the bundle would fetch from elsewhere, it does not: who looks at which patient stays here.
    "Content-Security-Policy": (
        "default-src 'self' blob: data: 'unsafe-inline' 'unsafe-eval'; "
        "frame-ancestors 'self'; form-action 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/{path:path}")
def viewer(request: Request, path: str, _user: User = USER) -> Response:
    """Return a file of the viewer, or its page for every address that is the viewer's own to read."""
    found = served(path)
    if found is None:
        if PurePosixPath(path).suffix:
            raise HTTPException(404, f"{path[:80]!r}: the viewer has no such file")
        found = served(PAGE)
    if found is None:
        raise HTTPException(404, "MONAI Label is installed without OHIF; install it again")
    return _answer(found, request.headers.get("if-none-match", ""))


@without_pacs.get("/{path:path}")
def no_viewer(_user: User = USER) -> Response:
    """Say what OHIF needs, where the studies are files."""
    raise HTTPException(
        404,
        "OHIF reads from a DICOMweb server, and this server's studies are files: start it with "
        "--studies http://HOST:PORT/dicom-web, or use 3D Slicer",
    )


def _answer(found: ServedFile, known_etag: str) -> Response:
    headers = {**_HEADERS, "Cache-Control": found.caching}
    if found.content is None:
        return FileResponse(found.path, media_type=found.media_type, headers=headers)
    headers["ETag"] = found.etag
    if found.etag in known_etag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
