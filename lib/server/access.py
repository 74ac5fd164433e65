"""Access control: roles of users, and labels of reader studies."""

from typing import Any

from fastapi import Depends, Request
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from lib.assignment.reader_studies import may_be_seen, readings_by_reader
from lib.config import is_loopback
from lib.errors import StateError
from lib.labels.history import FINAL
from lib.server.running_app import RunningApp, get_app
from lib.storage.identifiers import require_image_id
from lib.storage.tables import LabelVersion

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


_FORWARDED = frozenset({"forwarded", "via", "x-forwarded-for", "x-real-ip"})
"""Headers by which a proxy says that it sends the request of another machine (RFC 7239, RFC 9110)."""


def runs_here(request: Request) -> bool:
    """Return whether the client runs on this machine, so that it may load a scan by its path."""
    peer = request.client
    return peer is not None and is_loopback(peer.host) and _FORWARDED.isdisjoint(request.headers)


def image_info(request: Request, image_id: str) -> dict[str, Any]:
    """Return the information about an image; a client on another machine is not told its path."""
    app = get_app()
    info = app.store.get_image_info(image_id)
    series = None if app.folder_pacs is None else app.folder_pacs.series_of(image_id)
    if series is not None:
        # As with a PACS: a viewer opens the image by these.
        info |= {"StudyInstanceUID": series.study_uid, "SeriesInstanceUID": series.series_uid}
    return info if runs_here(request) else {k: v for k, v in info.items() if k != "path"}


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
    requester = author_of(user) if has_users else None
    if not may_be_seen(
        wanted=needed, submitted=submitted, requester=requester, is_reviewer=may_review(user)
    ):
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
