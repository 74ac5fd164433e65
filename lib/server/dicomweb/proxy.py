"""The PACS as the viewer sees it: searches and retrievals that go on to it with this server's credentials.

What MONAI Label's proxy gets wrong (defect 24): it drops the query, so that the viewer lists other patients'
studies; it holds a whole answer in memory, and every other request back, until the PACS is done; it asks the
PACS for whatever path it is given.
"""

import logging
import re
from collections.abc import AsyncIterator, Mapping
from functools import cache

import httpx
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from monailabel.config import settings

from lib.datastores.dicomweb import pacs_login
from lib.errors import DatastoreError, PacsError

logger = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(60, connect=5)
"""Seconds: a PACS may take its time between two pieces of an answer, but not to take up the call."""
_CONNECTIONS = 32
_PASSED_ON = ("accept", "accept-charset", "range")
"""What the PACS hears of a viewer's request; not its cookies, its credentials or its host."""
_PASSED_BACK = (
    "accept-ranges",
    "cache-control",
    "content-length",
    "content-range",
    "content-type",
    "etag",
    "last-modified",
    "warning",
)
"""What the viewer hears of the answer; not who answered, nor how it was transferred."""
_PATH = re.compile(r"(studies|series|instances)(/[A-Za-z0-9_,-][A-Za-z0-9_.,-]*)*")
_MAX_PATH = 1000
_SERVER_ERROR = 500


@cache
def client() -> httpx.AsyncClient:
    """Return the one client of this process: it keeps connections to the PACS open."""
    limits = httpx.Limits(max_connections=_CONNECTIONS)
    return httpx.AsyncClient(timeout=TIMEOUT, limits=limits, follow_redirects=False)


def require_path(path: str, raw_path: bytes) -> str:
    """Return a path below the PACS's DICOMweb address that a viewer may ask for (PS3.18 section 10.1.1).

    Args:
        path: As the route has it, decoded.
        raw_path: Of the whole request, as it was sent.

    Raises:
        DatastoreError: If it leads elsewhere: `..`, an address, an encoded slash, a service of the PACS's own.
    """
    plain = path.removesuffix("/")
    is_hidden = re.search(rb"%(2f|5c)", raw_path, re.IGNORECASE) is not None
    if is_hidden or len(plain) > _MAX_PATH or not _PATH.fullmatch(plain):
        raise DatastoreError(
            f"{path[:80]!r} is no DICOMweb path; expected one below studies, series or instances"
        )
    return plain


def address(service: str, path: str) -> str:
    """Return where the PACS has a path of a service: `wado`, `qido`, `stow`, or empty for none."""
    # OHIF asks for metadata by its search address.
    is_metadata = service == "qido" and path.endswith("metadata")
    prefixes = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    prefix = (prefixes.get("wado" if is_metadata else service) or "").strip("/")
    return "/".join(part for part in (base_address(), prefix, path) if part)


def base_address() -> str:
    """Return the PACS's DICOMweb address, without a slash at its end."""
    return str(settings.MONAI_LABEL_STUDIES).rstrip("/")


def credentials() -> httpx.BasicAuth | None:
    """Return what this server logs in to the PACS with, from its environment; None where it has nothing."""
    user, password = pacs_login()
    return httpx.BasicAuth(user, password) if user else None


async def retrieve(request: Request, service: str, path: str) -> Response:
    """Return what the PACS answers to a search or a retrieval, passed on as it arrives.

    Addresses of the PACS in JSON become addresses of this proxy, which are the ones that a browser can use.

    Raises:
        DatastoreError: If the path leads elsewhere.
        PacsError: If the PACS does not answer, refuses our credentials, or fails.
    """
    plain = require_path(path, request.scope.get("raw_path") or b"")
    url = httpx.URL(address(service, plain)).copy_with(query=request.scope["query_string"] or None)
    headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
    headers["accept-encoding"] = "gzip, identity"
    answer = await send(client().build_request("GET", url, headers=headers))
    back = {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}
    is_json = "json" in answer.headers.get("content-type", "")
    if is_json or answer.headers.get("content-encoding"):
        back.pop("content-length", None)
    pieces = _pieces(answer)
    if is_json:
        ours = f"{settings.MONAI_LABEL_API_STR}/proxy/dicom/wado"
        pieces = replaced(pieces, base_address().encode(), ours.encode())
    return StreamingResponse(pieces, answer.status_code, headers=back)


async def send(request: httpx.Request) -> httpx.Response:
    """Return the PACS's answer, its body not read yet.

    Raises:
        PacsError: If there is none, our credentials are refused, or it is a failure or a redirection.
    """
    try:
        answer = await client().send(request, auth=credentials(), stream=True)
    except httpx.TimeoutException as error:
        raise PacsError(
            f"the PACS at {base_address()} does not answer in time; try again, or look whether it is overloaded"
        ) from error
    except httpx.HTTPError as error:
        raise PacsError(
            f"the PACS at {base_address()} cannot be reached ({type(error).__name__}); start it, or start this "
            "server with --studies and the right address"
        ) from error
    trouble = _trouble(answer.status_code, answer.headers)
    if trouble is not None:
        await answer.aclose()
        raise PacsError(f"the PACS at {base_address()} {trouble}")
    return answer


def _trouble(status: int, headers: Mapping[str, str]) -> str | None:
    """Return what keeps an answer from being passed back, None where nothing does."""
    # Passed back as it is, the browser would ask its user for a password.
    if status in (401, 403):
        return (
            f"refuses this server's credentials ({status}); set MONAI_LABEL_DICOMWEB_USERNAME and "
            "MONAI_LABEL_DICOMWEB_PASSWORD, and start the server again"
        )
    if status >= _SERVER_ERROR:
        return f"failed ({status}); its own log says why"
    if "location" in headers:
        return f"redirects to {headers['location'][:200]}; start the server with that address"
    return None


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_bytes():
            yield piece
    except httpx.HTTPError as error:
        # Raised again, so that the connection breaks: a short answer must not look whole.
        logger.warning("the PACS stopped in the middle of %s: %s", answer.url.path, error)
        raise
    finally:
        await answer.aclose()


async def replaced(pieces: AsyncIterator[bytes], old: bytes, new: bytes) -> AsyncIterator[bytes]:
    """Yield `pieces` with every `old` replaced, also one that lies across two pieces."""
    kept = b""
    async for piece in pieces:
        kept = (kept + piece).replace(old, new)
        ready = max(0, len(kept) - len(old) + 1)
        yield kept[:ready]
        kept = kept[ready:]
    yield kept
