"""Routes to the viewer: OHIF's files, and this project's page, configuration, mode and extension (`viewer/`).

A file is found by its name in a fixed list, never by a path of the request (defect 11).
"""

import hashlib
import json
import mimetypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from monailabel.endpoints.user.auth import User

from lib.config import APP_DIR
from lib.organs.table import ORGANS, PLANNING_ORDER
from lib.server.access import USER
from lib.server.ohif import distribution

VIEWER = APP_DIR / "viewer"
MODULES_PATH = "organnet/"
"""Address of this project's own files, below the viewer's."""
PAGE = "index.html"
ORGANS_FILE = MODULES_PATH + "organs.json"
NOT_INSTALLED = (
    "OHIF is not installed on this server. Its administrator installs it with: make viewer. 3D Slicer works "
    "without it"
)

router = APIRouter(prefix="/ohif", include_in_schema=False)
without_pacs = APIRouter(prefix="/ohif", include_in_schema=False)

_MODE = "organnet"
_FORMER_MODES = ("monai-label",)
"""Addresses of earlier versions: links in other programs still open the patient."""
_MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".webapp": "application/manifest+json",
}
_NAME_WITH_HASH = re.compile(r"(\.bundle\.)?[0-9a-f]{16}\.(js|wasm|woff2)$")
_APP = re.compile(r"app\.bundle\.[0-9a-f]{16}\.js")
_CACHE_FOREVER = "public, max-age=31536000, immutable"
_REVALIDATE = "no-cache"
_HEADERS = {
    # The viewer loads nothing from other sites: they would learn who looks at which patient, and when.
    "Content-Security-Policy": (
        "default-src 'self' blob: data: 'unsafe-inline' 'unsafe-eval'; "
        "frame-ancestors 'self'; form-action 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class ViewerFile:
    """A file of the viewer as it is sent to the browser."""

    path: Path
    content: bytes | None
    """Content that is made here; None to send the file as it is."""
    media_type: str
    cache_control: str
    """How long a browser may use it without asking again."""
    etag: str
    """Digest of the content; empty for a file of OHIF."""


@cache
def viewer_files() -> dict[str, Path]:
    """Return every file by its name below /ohif/; files that are not listed are never sent."""
    ohif = distribution.folder()
    names = {path.relative_to(ohif).as_posix(): path for path in ohif.rglob("*")}
    ours = (*(VIEWER / "modules").glob("*.mjs"), VIEWER / "style.css")
    names |= {MODULES_PATH + path.relative_to(VIEWER).as_posix(): path for path in ours}
    names |= {name: VIEWER / name for name in (PAGE, "app-config.js")}
    return {name: path for name, path in names.items() if path.is_file()}


@lru_cache(maxsize=256)
def viewer_file(name: str) -> ViewerFile | None:
    """Return a file by its name below /ohif/; None if there is no such file."""
    if name == ORGANS_FILE:
        return _made(Path(name), json.dumps(_organs()).encode())
    path = viewer_files().get(name)
    if path is None:
        return None
    if name == PAGE:
        return _made(path, _page(path))
    if VIEWER in path.parents:
        return _made(path, path.read_bytes())
    is_immutable = _NAME_WITH_HASH.search(name)
    return ViewerFile(
        path, None, media_type(path), _CACHE_FOREVER if is_immutable else _REVALIDATE, etag=""
    )


def _made(path: Path, content: bytes) -> ViewerFile:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return ViewerFile(path, content, media_type(path), _REVALIDATE, etag)


def _page(path: Path) -> bytes:
    """Return the page with the name of OHIF's main script, which contains a digest."""
    (app,) = (name for name in viewer_files() if _APP.fullmatch(name))
    return path.read_text(encoding="utf-8").replace("app.bundle.js", app).encode()


def _organs() -> list[dict[str, object]]:
    """Return names and colours of all organs, in the order in which planners list them."""
    return [{"name": name, "colour": list(ORGANS[name].colour_rgb)} for name in PLANNING_ORDER]


def media_type(path: Path) -> str:
    """Return the media type of a file by its suffix."""
    guessed, _ = mimetypes.guess_type(path.name)
    return _MEDIA_TYPES.get(path.suffix) or guessed or "application/octet-stream"


def _redirect(former: str) -> Callable[..., RedirectResponse]:
    def redirect(request: Request, _user: User = USER) -> RedirectResponse:
        query = request.scope["query_string"].decode("latin-1")
        return RedirectResponse(f"{distribution.PUBLIC_PATH}{_MODE}?{query}", 308)

    redirect.__name__ = f"open_patient_of_{former.replace('-', '_')}"
    return redirect


for _former in _FORMER_MODES:
    router.add_api_route(f"/{_former}", _redirect(_former))


@router.get("/{path:path}")
def viewer(request: Request, path: str, _user: User = USER) -> Response:
    """Return a file of the viewer, or its page for an address that the viewer itself interprets."""
    if not distribution.folder().is_dir():
        raise HTTPException(503, NOT_INSTALLED)
    file = viewer_file(path)
    if file is None and PurePosixPath(path).suffix:
        raise HTTPException(404, f"{path[:80]!r}: the viewer has no such file")
    file = file or viewer_file(PAGE)
    if file is None:
        raise HTTPException(503, NOT_INSTALLED)
    headers = {**_HEADERS, "Cache-Control": file.cache_control}
    if file.content is None:
        return FileResponse(file.path, media_type=file.media_type, headers=headers)
    headers["ETag"] = file.etag
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


@without_pacs.get("/{path:path}")
def no_viewer(_user: User = USER) -> Response:
    """Answer 404 with what OHIF needs, if the studies are in a folder."""
    raise HTTPException(
        404,
        "OHIF reads from a DICOMweb server, but this server's studies are in a folder: start it with "
        "`--conf ohif_folder on` if they are DICOM series, or with --studies http://HOST:PORT/dicom-web, or "
        "use 3D Slicer",
    )
