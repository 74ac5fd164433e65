"""The routes that say how the project stands, and the settings that an admin may change while it runs."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.retrain import status
from lib.server.roles import ADMIN, USER

router = APIRouter(prefix="/organnet")


@router.get("/status")
def get_status(_user: User = USER) -> Any:
    """Return labels waiting, the training, what serves and why, the PACS, the scores, and what went before."""
    app = app_instance()
    return {
        **status.status(app.retraining, app.served_now()),
        "pacs": None if app.pacs_sync is None else app.pacs_sync.status(),
        "active_learning": {"scoring": app.config.scoring, **app.active_learning.status()},
    }


@router.get("/settings")
def get_settings(_user: User = ADMIN) -> Any:
    """Return the settings of retraining as they are now."""
    return asdict(app_instance().retraining.settings.get())


@router.put("/settings")
def change_settings(values: dict[str, Any], user: User = ADMIN) -> Any:
    """Change some, at once and for later servers too; null takes one back to what the server started with."""
    retraining = app_instance().retraining
    changed = retraining.settings.change(values, by=user.username or "")
    retraining.scheduler.wake()
    return asdict(changed)
