"""Who is let in (defect 12): this machine only, unless told otherwise, and never other sites' pages."""

from collections.abc import Iterable
from typing import Literal
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.config import is_loopback
from lib.server.uploads import MAX_UPLOAD_BYTES

LOCAL_ONLY = (
    "this server answers its own machine only. To let others in, turn authentication on "
    "(MONAI_LABEL_AUTH_ENABLE), or put an authenticating proxy before it and start it with "
    "--conf access network"
)
OTHER_SITE = (
    "the request comes from a page of another site; list it in MONAI_LABEL_CORS_ORIGINS to allow it"
)


class AccessGuard:
    """Refuses requests from other machines, and requests that a foreign web page makes a browser send.

    MONAI Label listens on all addresses by default, needs no login by default, and answers any page: so a web
    page open in the same browser could read patients and write labels. The `Host` is checked too where
    only this machine is let in: a foreign name that resolves to 127.0.0.1 is a foreign page.
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
            if not is_loopback(peer) or not is_loopback(urlsplit(f"//{host}").hostname or ""):
                return LOCAL_ONLY
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != host and origin not in self.origins:
            return OTHER_SITE
        return None


class BodyLimit:
    """Stops reading a request that is larger than a scan can be, before it has filled the disk."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int = MAX_UPLOAD_BYTES + 2**20) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 413."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.limit_bytes:
                raise HTTPException(413, f"more than {self.limit_bytes // 2**20} MiB")
            return message

        length = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limit_bytes:
            detail = {"detail": f"more than {self.limit_bytes // 2**20} MiB"}
            # Closed: the next request on it would be taken for the body that was announced.
            closing = {"Connection": "close"}
            await JSONResponse(detail, 413, headers=closing)(scope, receive, send)
        else:
            await self.app(scope, counted, send)
