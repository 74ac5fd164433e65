"""Who may call a route: MONAI Label's roles, which let everybody in while its authentication is off."""

from fastapi import Depends
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
REVIEWER = Depends(
    RBAC([settings.MONAI_LABEL_AUTH_ROLE_REVIEWER, settings.MONAI_LABEL_AUTH_ROLE_ADMIN])
)


ANNOTATOR_OR_REVIEWER = Depends(
    RBAC(
        [
            settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
            settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
            settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
        ]
    )
)

_REVIEWERS = frozenset(
    {settings.MONAI_LABEL_AUTH_ROLE_REVIEWER, settings.MONAI_LABEL_AUTH_ROLE_ADMIN}
)


def author_of(user: User) -> str:
    """Return who it is that asks; empty where nobody logs in, and MONAI Label calls everybody admin."""
    return str(user.username) if settings.MONAI_LABEL_AUTH_ENABLE else ""


def holder_of(user: User, client_id: object = None) -> str:
    """Return who holds what this request takes: the user who logged in, else the client by its id."""
    return author_of(user)[:200] or str(client_id or "")[:200]


def may_review(user: User) -> bool:
    """Return whether a user may do what `REVIEWER` lets do; everybody may where nobody logs in."""
    return not _REVIEWERS.isdisjoint(user.roles)
