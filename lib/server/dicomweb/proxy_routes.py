"""DICOMweb proxy for OHIF: searches and retrievals, passed on to the PACS with this server's credentials.

Differences from MONAI Label's proxy (defect 24), which drops the query, so that the viewer lists the studies of
other patients; holds each answer in memory and blocks all other requests meanwhile; and passes every path on.
"""

import logging
import re
from collections.abc import AsyncIterator, Mapping
from functools import cache

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import User

from lib.errors import DatastoreError, PacsError
from lib.server.access import USER
from lib.server.dicomweb.source import source

logger = logging.getLogger(__name__)

# The prefix is MONAI Label's, which the viewer's configuration contains.
router = APIRouter(prefix="/proxy/dicom", include_in_schema=False)

TIMEOUT = httpx.Timeout(60, connect=5)
"""Timeout in seconds: between two chunks of an answer, and for connecting."""
_CONNECTIONS = 32
_REQUEST_HEADERS = ("accept", "accept-charset", "range")
"""Headers that are passed to the PACS; cookies, credentials and host are not."""
_RESPONSE_HEADERS = (
    "accept-ranges",
    "cache-control",
    "content-length",
    "content-range",
    "content-type",
    "etag",
    "last-modified",
    "warning",
)
"""Headers that are passed back to the viewer."""
_PATH = re.compile(r"(studies|series|instances)(/[A-Za-z0-9_,-][A-Za-z0-9_.,-]*)*")
_MAX_PATH = 1000


# These routes wait for the PACS and not for a processor; as coroutines they occupy no thread meanwhile.
@router.get("/wado/{path:path}")
async def retrieve(request: Request, path: str, _user: User = USER) -> Response:
    """Return objects, their metadata, frames or bulk data (WADO-RS)."""
    return await pass_on(request, "wado", path)


@router.get("/qido/{path:path}")
async def search(request: Request, path: str, _user: User = USER) -> Response:
    """Return studies, series or instances that match the query (QIDO-RS)."""
    return await pass_on(request, "qido", path)


@router.get("/{path:path}")
async def retrieve_or_search(request: Request, path: str, _user: User = USER) -> Response:
    """Return the PACS's answer for a path without the prefix of a service."""
    return await pass_on(request, "", path)


@cache
def client() -> httpx.AsyncClient:
    """Return the HTTP client of this process, which reuses its connections to the PACS."""
    limits = httpx.Limits(max_connections=_CONNECTIONS)
    return httpx.AsyncClient(timeout=TIMEOUT, limits=limits, follow_redirects=False)


def require_path(path: str, raw_path: bytes) -> str:
    """Return a path below the PACS's DICOMweb address that a viewer may request (PS3.18 section 10.1.1).

    Args:
        path: Decoded path of the route.
        raw_path: Path of the whole request as it was sent.

    Raises:
        DatastoreError: If it is another path: `..`, an address, an encoded slash, a service of the PACS's own.
    """
    plain = path.removesuffix("/")
    has_encoded_slash = re.search(rb"%(2f|5c)", raw_path, re.IGNORECASE) is not None
    if has_encoded_slash or len(plain) > _MAX_PATH or not _PATH.fullmatch(plain):
        raise DatastoreError(
            f"{path[:80]!r} is not a DICOMweb path; expected one below studies, series or instances"
        )
    return plain


def address(service: str, path: str) -> str:
    """Return the PACS's address of a path; `service` is `wado`, `qido`, `stow`, or empty for none."""
    # OHIF requests metadata under its search address.
    is_metadata = service == "qido" and path.endswith("metadata")
    target = source()
    prefix = target.prefixes.get("wado" if is_metadata else service, "").strip("/")
    return "/".join(part for part in (target.url, prefix, path) if part)


async def pass_on(request: Request, service: str, path: str) -> Response:
    """Return the PACS's answer to a search or a retrieval as a stream.

    Addresses of the PACS in JSON are replaced by addresses of this proxy, which a browser can reach.

    Raises:
        DatastoreError: If the path is not allowed (`require_path`).
        PacsError: If the PACS does not answer, refuses the credentials, or fails.
    """
    plain = require_path(path, request.scope.get("raw_path") or b"")
    url = httpx.URL(address(service, plain)).copy_with(query=request.scope["query_string"] or None)
    headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
    headers["accept-encoding"] = "gzip, identity"
    answer = await send(client().build_request("GET", url, headers=headers))
    response_headers = {
        name: answer.headers[name] for name in _RESPONSE_HEADERS if name in answer.headers
    }
    is_json = "json" in answer.headers.get("content-type", "")
    if is_json or answer.headers.get("content-encoding"):
        response_headers.pop("content-length", None)
    chunks = _chunks(answer)
    if is_json:
        own_address = f"{settings.MONAI_LABEL_API_STR}/proxy/dicom/wado"
        chunks = replaced(chunks, source().url.encode(), own_address.encode())
    return StreamingResponse(chunks, answer.status_code, headers=response_headers)


async def send(request: httpx.Request) -> httpx.Response:
    """Return the PACS's answer with an unread body.

    A PACS closes connections that are idle for a while; a GET on such a connection is sent again.

    Raises:
        PacsError: If there is no answer, the credentials are refused, or it is an error or a redirect.
    """
    target = source()
    login = httpx.BasicAuth(*target.login) if target.login else None
    try:
        try:
            answer = await client().send(request, auth=login, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if request.method != "GET":
                raise
            answer = await client().send(request, auth=login, stream=True)
    except httpx.TimeoutException as error:
        raise PacsError(
            f"the PACS at {target.url} does not answer in time; check its load, and try again"
        ) from error
    except httpx.HTTPError as error:
        raise PacsError(
            f"the PACS at {target.url} cannot be reached ({type(error).__name__}); start it, or start this "
            "server with the correct --studies address"
        ) from error
    problem = _problem(answer.status_code, answer.headers)
    if problem is not None:
        await answer.aclose()
        raise PacsError(f"the PACS at {target.url} {problem}")
    return answer


def _problem(status: int, headers: Mapping[str, str]) -> str | None:
    """Return why an answer cannot be passed back to the viewer; None if it can."""
    # A 401 that is passed back makes the browser ask its user for a password.
    if status in (401, 403):
        return (
            f"refuses this server's credentials ({status}); set MONAI_LABEL_DICOMWEB_USERNAME and "
            "MONAI_LABEL_DICOMWEB_PASSWORD, and restart the server"
        )
    if httpx.codes.is_server_error(status):
        return f"failed ({status}); see its log for the reason"
    if "location" in headers:
        return f"redirects to {headers['location'][:200]}; start the server with that address"
    return None


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    except httpx.HTTPError as error:
        # Raised again to break the connection: an incomplete answer must not look complete.
        logger.warning("the PACS broke off its answer to %s: %s", answer.url.path, error)
        raise
    finally:
        await answer.aclose()


async def replaced(chunks: AsyncIterator[bytes], old: bytes, new: bytes) -> AsyncIterator[bytes]:
    """Yield `chunks` with every `old` replaced by `new`, also where it is split across two chunks."""
    rest = b""
    async for chunk in chunks:
        rest = (rest + chunk).replace(old, new)
        # The last bytes may be the beginning of another `old`.
        complete = max(0, len(rest) - len(old) + 1)
        yield rest[:complete]
        rest = rest[complete:]
    yield rest
