"""The viewer's files as they are served: OHIF's bundle with its cures, and ours beside it."""

import hashlib
import json
import mimetypes
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import monailabel

from lib.organs.table import ORGANS
from lib.server.ohif.bundle_patches import cured, is_cured

BUNDLE = Path(monailabel.__file__).parent / "endpoints" / "static" / "ohif"
OURS = Path(__file__).parent / "viewer"
OURS_AT = "organnet/"
PAGE = "index.html"

_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".webapp": "application/manifest+json",
}
_HASHED = re.compile(r"(\.bundle\.)?[0-9a-f]{20}\.(js|wasm)$")
_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


@dataclass(frozen=True, slots=True)
class ServedFile:
    """One file.

    Attributes:
        path: Where it lies.
        content: What is served in its place; None to serve it as it lies there.
        media_type: Its type.
        caching: How long a browser may keep it without asking.
        etag: Changes with the content; empty where the file's own will do.
    """

    path: Path
    content: bytes | None
    media_type: str
    caching: str
    etag: str


@cache
def known() -> dict[str, Path]:
    """Return every file by its name below /ohif/: what is not in here is not served, whatever it is called."""
    found = {str(path.relative_to(BUNDLE).as_posix()): path for path in BUNDLE.rglob("*")}
    found |= {OURS_AT + path.name: path for path in OURS.iterdir()}
    return {name: path for name, path in found.items() if path.is_file()}


@lru_cache(maxsize=256)
def served(name: str) -> ServedFile | None:
    """Return a file by its name below /ohif/, None where there is none of that name."""
    path = known().get(name)
    if path is None:
        return None
    content = None
    if is_cured(name):
        content = cured(name, path.read_text(encoding="utf-8")).encode()
    elif name == f"{OURS_AT}hooks.js":
        content = _with_organs(path.read_text(encoding="utf-8")).encode()
    # A cured file keeps its name when its cures change with a newer server.
    keeps = _FOREVER if content is None and _HASHED.search(name) else _ASK_AGAIN
    etag = "" if content is None else f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return ServedFile(path, content, media_type(path), keeps, etag)


def _with_organs(text: str) -> str:
    colours = {name: organ.colour_rgb for name, organ in ORGANS.items()}
    return text.replace("const ORGANS = {};", f"const ORGANS = {json.dumps(colours)};")


def media_type(path: Path) -> str:
    """Return the media type of a file by its suffix."""
    guessed, _ = mimetypes.guess_type(path.name)
    return _TYPES.get(path.suffix) or guessed or "application/octet-stream"
