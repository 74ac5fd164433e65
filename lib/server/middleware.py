"""Middleware that refuses requests before any route: form of the request, origin, and size of the body."""

import asyncio
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable
from typing import Literal
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.config import is_loopback
from lib.server.requests import MAX_UPLOAD_BYTES

LOCAL_ONLY = (
    "this server answers requests from its own machine only. To allow other machines, turn authentication on "
    "(MONAI_LABEL_AUTH_ENABLE), or put an authenticating proxy in front of it and start it with "
    "--conf access network"
)
OTHER_SITE = (
    "the request comes from a web page of another site; to allow it, list the site in "
    "MONAI_LABEL_CORS_ORIGINS"
)
BAD_HOST = "the Host header is not NAME or NAME:PORT, with an IPv6 address in brackets (RFC 9110 section 7.2)"
MAX_TEXT_BYTES = 4 * 2**20
"""Limit of a body that is not multipart, such as JSON, in bytes; it is read into memory."""
STALL_S = 60.0
"""Longest wait for the next part of a body, in seconds."""

_HOST = re.compile(
    r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:(?P<port>[0-9]{0,5}))?"
)


def host_name(header: str) -> str:
    """Return the name or address in a Host header without its port; an IPv6 address keeps its brackets.

    Raises:
        ValueError: If the header is malformed.
    """
    match = _HOST.fullmatch(header)
    if match is None or int(match["port"] or 0) > 65535:
        raise ValueError(BAD_HOST)
    if match["name"].startswith("["):
        try:
            ipaddress.IPv6Address(match["name"].strip("[]"))
        except ValueError as error:
            raise ValueError(BAD_HOST) from error
    return match["name"]


_MAY_REPEAT = re.compile(rb"/(proxy|ohif)/")


class RequestForm:
    """Middleware that answers a malformed address or Host header with 400.

    A path or query is UTF-8 without the character NUL, and names each parameter once: which of two values
    counts would depend on the reader. Only DICOMweb searches (PS3.18 section 8.3.4) and OHIF repeat parameters.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 400."""
        try:
            if scope["type"] in ("http", "websocket"):
                _require_one_host(scope)
                _require_plain_address(scope)
        except ValueError as error:
            await JSONResponse({"detail": str(error)}, 400)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _require_one_host(scope: Scope) -> None:
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(hosts) > 1:
        raise ValueError("the request has several Host headers; one expected")
    host_name(hosts[0] if hosts else "")


def _require_plain_address(scope: Scope) -> None:
    path, query = scope.get("raw_path") or b"", scope["query_string"]
    for name, text in (("path", path), ("query", query)):
        plain = unquote_to_bytes(text)
        if b"\0" in plain:
            raise ValueError(f"the {name} of the address contains the character NUL")
        try:
            plain.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the {name} of the address is not UTF-8; encode it as UTF-8 before its %XX"
            ) from error
    if _MAY_REPEAT.search(path):
        return
    names = Counter(name for name, _ in parse_qsl(query.decode(), keep_blank_values=True))
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0][:80]!r} is given twice in the query; name it once")


class AccessGuard:
    """Middleware that refuses requests from other machines and from web pages of other sites (defect 12).

    MONAI Label listens on all addresses by default, needs no login by default, and answers any web page. Any
    page open in the same browser could read patient data and write labels. With `local` access the `Host`
    header is checked too: a page of a foreign site can resolve its own name to 127.0.0.1 (DNS rebinding).
    """

    def __init__(
        self, app: ASGIApp, *, access: Literal["local", "network"], origins: Iterable[str] = ()
    ) -> None:
        self.app = app
        self.access = access
        self.origins = frozenset(str(origin).rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 403."""
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await JSONResponse({"detail": refusal}, 403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get("host", "")
        if self.access == "local":
            peer = (scope.get("client") or ("", 0))[0]
            if not is_loopback(peer) or not _is_local(host):
                return LOCAL_ONLY
        origin = headers.get("origin")
        if origin and _host_of(origin) != host and origin not in self.origins:
            return OTHER_SITE
        return None


def _is_local(host: str) -> bool:
    try:
        return is_loopback(host_name(host).lower())
    except ValueError:
        return False


def _host_of(origin: str) -> str | None:
    """Return host and port of an Origin header; None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


class BodyLimit:
    """Middleware that stops reading a body that is too large, before it fills the disk, or does not arrive.

    Args:
        app: The application.
        limit_bytes: Limit of a multipart body, which is written to disk while it arrives.
        text_limit_bytes: Limit of any other body, which is read into memory.
        stall_s: Longest wait for the next part of a body, in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit_bytes: int = MAX_UPLOAD_BYTES + 2**20,
        text_limit_bytes: int = MAX_TEXT_BYTES,
        stall_s: float = STALL_S,
    ) -> None:
        self.app = app
        self.limit_bytes = limit_bytes
        self.text_limit_bytes = text_limit_bytes
        self.stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 413, or with 408 if its body does not arrive."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        is_multipart = headers.get(b"content-type", b"").lower().startswith(b"multipart/")
        limit_bytes = self.limit_bytes if is_multipart else self.text_limit_bytes
        too_large = f"the request body exceeds the limit of {limit_bytes // 2**20} MiB"
        if not is_multipart:
            too_large += "; send a file as multipart/form-data"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit_bytes:
            refusal = JSONResponse({"detail": too_large}, 413, headers=_CLOSE)
            await refusal(scope, receive, send)
            return
        read_bytes, is_complete = 0, False

        async def receive_counted() -> Message:
            nonlocal read_bytes, is_complete
            # After the last part, a route waits here for the end of the connection.
            if is_complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.stall_s)
            except TimeoutError as error:
                detail = f"the request body did not arrive: nothing for {self.stall_s:g} s"
                raise HTTPException(408, detail, headers=_CLOSE) from error
            is_complete = not message.get("more_body", False)
            read_bytes += len(message.get("body", b""))
            if read_bytes > limit_bytes:
                raise HTTPException(413, too_large, headers=_CLOSE)
            return message

        await self.app(scope, receive_counted, send)


_CLOSE = {"Connection": "close"}
"""The server must not take the unread rest of a body for the next request."""
