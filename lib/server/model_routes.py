"""Routes to the models: list, comparison, promotion, rollback and pruning."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict

from lib.retrain import views
from lib.server.access import ADMIN, USER
from lib.server.bodies import StrictRoute
from lib.server.responses import ERRORS
from lib.server.running_app import RunningApp, get_app

KEEP = 5
"""Default number of promoted models whose weights pruning keeps."""

router = APIRouter(prefix="/organnet/models", responses=ERRORS, route_class=StrictRoute)


class ModelSummary(BaseModel):
    """One model in a list; `is_due` marks a decided promotion that is not carried out yet."""

    version: str
    parent: str | None
    created_at: str
    decided_at: str | None
    decision: str
    reason: str
    mean_dice: float | None
    labels_seen: int
    is_served: bool
    is_starter: bool
    is_due: bool
    pruned_at: str | None


class ModelList(BaseModel):
    """All models, newest first.

    `served` is the active model, null if none can be loaded; `trouble` says why it is not the one that was
    promoted last.
    """

    served: str | None
    trouble: str | None
    models: list[ModelSummary]


class TrainingLabel(BaseModel):
    """A label that a model learned from."""

    model_config = ConfigDict(extra="allow")
    image_id: str
    version: int | None = None
    digest: str | None = None


class PromotionOfModel(BaseModel):
    """One activation of a model."""

    since: str
    previous: str | None
    reason: str
    by: str


class ModelDetails(ModelSummary):
    """A model with its training labels, decision report, activations and model card."""

    run_id: int | None
    recipe: str
    commit: str | None
    labels: list[TrainingLabel]
    seed: int
    metrics: dict[str, float | None]
    report: dict[str, Any]
    pending: dict[str, Any] | None
    promotions: list[PromotionOfModel]
    card: dict[str, Any]


class DicePair(BaseModel):
    """DSC of two models, and b minus a; null where a model was not evaluated."""

    a: float | None
    b: float | None
    difference: float | None


class LabelDifference(BaseModel):
    """Labels that only one of two models learned from, and the number of common ones."""

    only_a: list[TrainingLabel]
    only_b: list[TrainingLabel]
    both: int


class ValuePair(BaseModel):
    """A recipe field of two models."""

    a: Any
    b: Any


class ModelComparison(BaseModel):
    """Two models side by side; labels include those of the models' parents."""

    a: str
    b: str
    mean_dice: DicePair
    organs: dict[str, DicePair]
    labels: LabelDifference
    recipe: dict[str, ValuePair]


class ActiveModel(BaseModel):
    """The active model, and why it is not the one promoted last, if so."""

    served: str
    trouble: str | None


class PrunedModels(BaseModel):
    """Versions whose weights were removed."""

    pruned: list[str]


@router.get("/")
def list_models(_user: User = USER) -> ModelList:
    """Return every model, newest first, and the active one."""
    app = get_app()
    # The list includes models that another program wrote or promoted.
    app.promoter.record_external_changes()
    return ModelList(**views.list_models(app.models, app.served))


@router.get("/compare", response_model_exclude_unset=True)
def compare_models(a: str, b: str, _user: User = USER) -> ModelComparison:
    """Return two models side by side: DSC per organ, and the labels and recipe fields that differ."""
    app = get_app()
    return ModelComparison(**views.compare_models(app.models, app.registry, a, b))


@router.get("/{version}", response_model_exclude_unset=True)
def show_model(version: str, _user: User = USER) -> ModelDetails:
    """Return everything recorded about a model."""
    app = get_app()
    return ModelDetails(**views.describe_model(app.models, app.served, version))


@router.post("/rollback")
def roll_back(reason: str = "", user: User = ADMIN) -> ActiveModel:
    """Activate the newest loadable model that was active before the current one."""
    app = get_app()
    app.promoter.rollback(by=user.username, reason=reason[:500])
    return _active_model(app)


@router.post("/prune")
def prune_models(keep: Annotated[int, Query(ge=0)] = KEEP, _user: User = ADMIN) -> PrunedModels:
    """Remove the weights of models that are not needed any more; their records and cards stay."""
    return PrunedModels(pruned=get_app().promoter.prune(keep=keep))


@router.post("/{version}/promote")
def promote_model(version: str, reason: str = "", user: User = ADMIN) -> ActiveModel:
    """Activate a model from the next request on."""
    app = get_app()
    app.promoter.promote(version, reason=reason[:500] or "by hand", by=user.username)
    return _active_model(app)


def _active_model(app: RunningApp) -> ActiveModel:
    """Return the active model after loading it, so that no inference request has to wait for that."""
    model = app.served.get(is_newest=True)
    return ActiveModel(served=model.version, trouble=app.served.fallback_reason)
