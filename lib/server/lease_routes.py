"""The routes to the leases: who contours which case now."""

from typing import Any

from fastapi import APIRouter, HTTPException
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.server.requests import as_number, only
from lib.server.roles import ANNOTATOR, ANNOTATOR_OR_REVIEWER, USER, holder_of, may_review
from lib.storage.identifiers import require_image_id
from lib.storage.tables import Lease

router = APIRouter(prefix="/organnet/leases")

MAX_MINUTES = 7 * 24 * 60.0
_WISHES = frozenset({"minutes", "client_id"})


def lease_as_dict(lease: Lease) -> dict[str, Any]:
    """Return what everybody may know of a lease; nothing in it leads to another reader's contours."""
    return {
        "image": lease.image_id,
        "holder": lease.holder,
        "strategy": lease.strategy,
        "why": lease.why,
        "since": lease.granted_at.isoformat(),
        "until": lease.expires_at.isoformat(),
        "ended_at": None if lease.ended_at is None else lease.ended_at.isoformat(),
        "ended_by": lease.ended_by,
    }


@router.get("")
def list_leases(_user: User = USER) -> list[dict[str, Any]]:
    """Return the leases that hold now, oldest first."""
    return [lease_as_dict(lease) for lease in app_instance().leases.active()]


@router.post("/{image}")
def take_lease(
    image: str, body: dict[str, Any] | None = None, user: User = ANNOTATOR
) -> dict[str, Any]:
    """Lease an image by name, or extend the lease that the client has of it."""
    app = app_instance()
    image_id = require_image_id(image)
    app.image_path(image_id)
    given = only(body, _WISHES)
    asked = given.get("minutes")
    minutes = app.config.lease_minutes if asked is None else asked
    for_s = 60.0 * as_number("minutes", minutes, 0.01, MAX_MINUTES)
    return lease_as_dict(
        app.leases.grant(image_id, holder_of(user, given.get("client_id")), for_s=for_s)
    )


@router.delete("/{image}")
def release_lease(
    image: str, client_id: str = "", holder: str | None = None, user: User = ANNOTATOR_OR_REVIEWER
) -> dict[str, Any]:
    """End the client's own lease; a reviewer ends anybody's, named by `holder`."""
    own = holder_of(user, client_id)
    if holder is not None and holder != own and not may_review(user):
        raise HTTPException(403, "another's lease is ended by a reviewer or an admin only")
    ended = app_instance().leases.release(
        require_image_id(image), own if holder is None else holder
    )
    return lease_as_dict(ended)
