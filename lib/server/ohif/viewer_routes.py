"""Routes to the files of OHIF: MONAI Label's bundle with patches, and this project's scripts beside it.

A file is found by its name in a fixed list, never by a path of the request (defect 11).
"""

import hashlib
import json
import mimetypes
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

import monailabel
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse
from monailabel.endpoints.user.auth import User

from lib.organs.table import ORGANS
from lib.server.access import USER
from lib.server.ohif.bundle_patches import is_patched, patched

BUNDLE = Path(monailabel.__file__).parent / "endpoints" / "static" / "ohif"
SCRIPTS = Path(__file__).parent / "viewer"
SCRIPTS_PATH = "organnet/"
PAGE = "index.html"

router = APIRouter(prefix="/ohif", include_in_schema=False)
without_pacs = APIRouter(prefix="/ohif", include_in_schema=False)

_MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".webapp": "application/manifest+json",
}
_NAME_WITH_HASH = re.compile(r"(\.bundle\.)?[0-9a-f]{20}\.(js|wasm)$")
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
    """Changed content; None to send the file as it is."""
    media_type: str
    cache_control: str
    """How long a browser may use it without asking again."""
    etag: str
    """Digest of the changed content; empty for an unchanged file."""


@cache
def viewer_files() -> dict[str, Path]:
    """Return every file by its name below /ohif/; files that are not listed are never sent."""
    paths = {path.relative_to(BUNDLE).as_posix(): path for path in BUNDLE.rglob("*")}
    paths |= {SCRIPTS_PATH + path.name: path for path in SCRIPTS.iterdir()}
    return {name: path for name, path in paths.items() if path.is_file()}


@lru_cache(maxsize=256)
def viewer_file(name: str) -> ViewerFile | None:
    """Return a file by its name below /ohif/; None if there is no such file."""
    path = viewer_files().get(name)
    if path is None:
        return None
    content = None
    if is_patched(name):
        content = patched(name, path.read_text(encoding="utf-8")).encode()
    elif name == f"{SCRIPTS_PATH}hooks.js":
        content = _with_organ_colours(path.read_text(encoding="utf-8")).encode()
    # A patched file keeps its name when a newer version of this server patches it differently.
    is_immutable = content is None and _NAME_WITH_HASH.search(name)
    cache_control = _CACHE_FOREVER if is_immutable else _REVALIDATE
    etag = "" if content is None else f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return ViewerFile(path, content, media_type(path), cache_control, etag)


def _with_organ_colours(text: str) -> str:
    colours = {name: organ.colour_rgb for name, organ in ORGANS.items()}
    return text.replace("const ORGANS = {};", f"const ORGANS = {json.dumps(colours)};")


def media_type(path: Path) -> str:
    """Return the media type of a file by its suffix."""
    guessed, _ = mimetypes.guess_type(path.name)
    return _MEDIA_TYPES.get(path.suffix) or guessed or "application/octet-stream"


@router.get("/{path:path}")
def viewer(request: Request, path: str, _user: User = USER) -> Response:
    """Return a file of the viewer, or its page for an address that the viewer itself interprets."""
    file = viewer_file(path)
    if file is None:
        if PurePosixPath(path).suffix:
            raise HTTPException(404, f"{path[:80]!r}: the viewer has no such file")
        file = viewer_file(PAGE)
    if file is None:
        raise HTTPException(404, "OHIF is missing from the installed MONAI Label; install it again")
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
        "--studies http://HOST:PORT/dicom-web, or use 3D Slicer",
    )
