"""The routes to the models' history, and to what an admin may do about it."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.retrain import model_views
from lib.server.roles import ADMIN, USER

KEEP = 5
"""Promoted models whose weights a pruning leaves, unless told otherwise."""

router = APIRouter(prefix="/organnet/models")


@router.get("/")
def list_models(_user: User = USER) -> Any:
    """Return every model, newest first, and which of them serves."""
    app = app_instance()
    # What another program wrote or published since is in the list too.
    app.promoter.notice()
    return model_views.overview(app.models, app.served)


@router.get("/compare")
def compare_models(a: str, b: str, _user: User = USER) -> Any:
    """Return two models side by side: DSC per organ, labels and recipe fields that differ."""
    app = app_instance()
    return model_views.compare(app.models, app.registry, a, b)


@router.get("/{version}")
def show_model(version: str, _user: User = USER) -> Any:
    """Return all that is known of a model."""
    app = app_instance()
    return model_views.everything(app.models, app.served, version)


@router.post("/rollback")
def roll_back(reason: str = "", user: User = ADMIN) -> Any:
    """Let the version serve that was promoted before the current one and loads."""
    app = app_instance()
    app.promoter.rollback(by=user.username, reason=reason[:500])
    return _served(app)


@router.post("/prune")
def prune_models(keep: Annotated[int, Query(ge=0)] = KEEP, _user: User = ADMIN) -> Any:
    """Remove the weights of models that nobody needs; their rows and cards stay."""
    return {"pruned": app_instance().promoter.prune(keep=keep)}


@router.post("/{version}/promote")
def promote_model(version: str, reason: str = "", user: User = ADMIN) -> Any:
    """Let a model serve from the next request on."""
    app = app_instance()
    app.promoter.promote(version, reason=reason[:500] or "by hand", by=user.username)
    return _served(app)


def _served(app: Any) -> dict[str, Any]:
    """Return what serves now, loaded: the request after this answer is not the one that waits for it."""
    model = app.served.get(is_newest=True)
    return {"served": model.version, "trouble": app.served.trouble}
