"""Access control: machines and web pages, roles of users, and labels of reader studies."""

from collections.abc import Iterable
from typing import Literal
from urllib.parse import urlsplit

from fastapi import Depends
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.assignment.reader_studies import may_be_seen, readings_by_reader
from lib.config import is_loopback
from lib.errors import StateError
from lib.labels.history import FINAL
from lib.server.requests import MAX_UPLOAD_BYTES
from lib.server.running_app import RunningApp, get_app
from lib.storage.identifiers import require_image_id
from lib.storage.tables import LabelVersion

LOCAL_ONLY = (
    "this server answers requests from its own machine only. To allow other machines, turn authentication on "
    "(MONAI_LABEL_AUTH_ENABLE), or put an authenticating proxy in front of it and start it with "
    "--conf access network"
)
OTHER_SITE = (
    "the request comes from a web page of another site; to allow it, list the site in "
    "MONAI_LABEL_CORS_ORIGINS"
)


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
            if not is_loopback(peer) or not is_loopback(urlsplit(f"//{host}").hostname or ""):
                return LOCAL_ONLY
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != host and origin not in self.origins:
            return OTHER_SITE
        return None


class BodyLimit:
    """Middleware that stops reading a request body above the size of a scan, before it fills the disk."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int = MAX_UPLOAD_BYTES + 2**20) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 413."""
        read_bytes = 0
        detail = f"the request body exceeds the limit of {self.limit_bytes // 2**20} MiB"

        async def receive_counted() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > self.limit_bytes:
                raise HTTPException(413, detail)
            return message

        length = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limit_bytes:
            # Close the connection, or the server would parse the unread body as the next request.
            headers = {"Connection": "close"}
            await JSONResponse({"detail": detail}, 413, headers=headers)(scope, receive, send)
        else:
            await self.app(scope, receive_counted, send)


# MONAI Label's roles. While its authentication is off, every request has all of them.
USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
_REVIEWERS = [settings.MONAI_LABEL_AUTH_ROLE_REVIEWER, settings.MONAI_LABEL_AUTH_ROLE_ADMIN]
REVIEWER = Depends(RBAC(_REVIEWERS))
ANNOTATOR_OR_REVIEWER = Depends(RBAC([settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR, *_REVIEWERS]))


def _known_image(image: str) -> str:
    get_app().store.require_image(require_image_id(image))
    return image


KNOWN_IMAGE = Depends(_known_image)
"""Image id in a path or query, checked before the body, so that an unknown image is answered with 404."""


def author_of(user: User) -> str:
    """Return the user's name; empty without authentication, where MONAI Label names every user "admin"."""
    return str(user.username) if settings.MONAI_LABEL_AUTH_ENABLE else ""


def holder_of(user: User, client_id: object = None) -> str:
    """Return the name that leases are granted to: the user's, or without authentication the client's id."""
    return author_of(user)[:200] or str(client_id or "")[:200]


def may_review(user: User) -> bool:
    """Return whether a user has the role of `REVIEWER`; without authentication every user has."""
    return not set(_REVIEWERS).isdisjoint(user.roles)


def require_label_access(
    app: RunningApp, image_id: str, tag: str, user: User, *, is_version: bool
) -> None:
    """Raise an error if a user may not see the final label of an image yet.

    In a reader study, readers see no contours of others before they have submitted their own. With
    authentication, reviewers and readers who have submitted may see the label; all others when the study is
    complete. Without authentication, readers cannot be identified: the current label is hidden until the study
    is complete, and a version, which has to be requested by its number, is always shown. Files in the studies
    folder are not protected.

    Args:
        app: The running app.
        image_id: The image.
        tag: Tag of the label.
        user: The user who requests it.
        is_version: Whether a numbered version is requested, not the current label.

    Raises:
        StateError: If access is denied.
    """
    has_users = settings.MONAI_LABEL_AUTH_ENABLE
    if tag != FINAL or (is_version and not has_users):
        return
    needed = app.assignments.readers.readers_of(image_id)
    if needed == 1:
        return
    submitted = readings_by_reader(app.label_history.history(image_id, FINAL))
    asks = author_of(user) if has_users else None
    if not may_be_seen(wanted=needed, submitted=submitted, asks=asks, is_reviewer=may_review(user)):
        raise StateError(
            f"{image_id}: {len(submitted)} of {needed} readers of this reader study have submitted. The label "
            "is shown when all have, so that each reader contours independently. Reviewers find every "
            "version under /organnet/labels/IMAGE/NUMBER"
        )


def organs_left_out(app: RunningApp, version: LabelVersion) -> list[str]:
    """Return the organs of the previous version that a submitted label does not have, to warn the annotator.

    Empty in a reader study, where readers must not learn about each other's labels.
    """
    has_one_reader = app.assignments.readers.readers_of(version.image_id) == 1
    return list(app.label_history.missing_organs(version)) if has_one_reader else []
