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


def author_of(user: User) -> str:
    """Return who it is that asks; empty where nobody logs in, and MONAI Label calls everybody admin."""
    return str(user.username) if settings.MONAI_LABEL_AUTH_ENABLE else ""
