"""Routes to the status of the project and to the edit cost of predictions."""

from typing import Any

from fastapi import APIRouter, Response
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, Field

from lib.activelearning.edit_cost_chart import edit_chart
from lib.activelearning.edit_costs import summary
from lib.errors import CheckpointError, DatastoreError
from lib.retrain import views
from lib.server.access import USER
from lib.server.bodies import StrictRoute
from lib.server.model_routes import ModelSummary
from lib.server.requests import MAX_JOB_ID
from lib.server.responses import ERRORS, IsoTime, RowAnswer, file_of
from lib.server.running_app import RunningApp, get_app

router = APIRouter(prefix="/organnet", responses=ERRORS, route_class=StrictRoute)


class Served(BaseModel):
    """The active model.

    `trouble` says why it is not the one promoted last; then date and reason are null. `backend` computes it
    (ADR 30), for `backend_reason`.
    """

    version: str
    since: str | None
    reason: str | None
    trouble: str | None
    backend: str
    backend_reason: str


class LabelCounts(BaseModel):
    """Numbers of final labels: all, evaluation cases, and new ones since the last training.

    `doubted` gives the implausible properties of labels by image.
    """

    total: int
    referee: int
    doubted: dict[str, list[str]]
    waiting: int
    waiting_cases: list[str]
    oldest_waiting: str | None


class TrainingRun(BaseModel):
    """A training run."""

    id: int
    state: str
    why: str
    labels: int
    new_labels: int
    initial_version: str | None
    epoch: int
    total_epochs: int
    loss: float | None
    mean_dsc: float | None
    eta_s: float | None
    candidate: str | None
    outcome: str | None
    notes: list[str]
    created: str
    started: str | None
    ended: str | None


class NextTraining(BaseModel):
    """Whether a training starts now, and why or why not."""

    starts_now: bool
    reason: str
    next_look: str | None


class Promotion(BaseModel):
    """One change of the active model."""

    version: str
    since: str
    reason: str
    by: str


class History(BaseModel):
    """The newest models, promotions and trainings."""

    models: list[ModelSummary]
    promotions: list[Promotion]
    trainings: list[TrainingRun]


class Undelivered(RowAnswer):
    """A series or object that the PACS lists and does not deliver."""

    uid: str
    reason: str
    attempts: int
    next_try: IsoTime = Field(validation_alias="next_at")


class OutboxEntry(RowAnswer):
    """A label version that is not in the PACS yet."""

    image: str = Field(validation_alias="image_id")
    number: int
    attempts: int
    next_try: IsoTime = Field(validation_alias="next_at")
    trouble: str | None = Field(validation_alias="error")


class RefusedObject(RowAnswer):
    """A SEG or RTSTRUCT in the PACS that is not a valid label."""

    sop_instance_uid: str = Field(validation_alias="sop_uid")
    image: str | None = Field(validation_alias="image_id")
    reason: str | None


class Pacs(BaseModel):
    """State of the synchronisation with the PACS; `at_hand` is the number of cached scans."""

    url: str
    trouble: str
    images: int
    at_hand: int
    unchecked: int
    refused: dict[str, str]
    undelivered: list[Undelivered]
    outbox: list[OutboxEntry]
    refused_objects: list[RefusedObject]


class ActiveLearning(BaseModel):
    """Numbers of images scored by the active and by earlier models; images that cannot be read, with reason."""

    scoring: bool
    model_version: str | None
    unlabelled: int
    scored: int
    scored_by_an_earlier_model: int
    sampled: int
    unreadable: dict[str, str]
    edit_cost: str


class InferenceProgress(RowAnswer):
    """Stage of a computation, its steps, and the expected time until its end; null before a measurement."""

    stage: str
    done: int
    total: int
    seconds_left: float | None


class InferenceQueueStatus(RowAnswer):
    """Requests for contours that compute and wait now; `expected_s`: time until a new one would be answered.

    `position` is the number of computations before that of the request asked for; null if there is none.
    `progress` is its stage while it computes.
    """

    computing: int
    waiting: int
    limit: int
    expected_s: float
    position: int | None = None
    progress: InferenceProgress | None = None


class CancelledRequest(BaseModel):
    """The cancelled request."""

    job: str


class Status(BaseModel):
    """Status of the project; `pacs` is null if the studies are in a folder."""

    served: Served | None
    inference: InferenceQueueStatus
    labels: LabelCounts
    training: TrainingRun | None
    next_training: NextTraining
    last_decision: ModelSummary | None
    history: History
    pacs: Pacs | None
    active_learning: ActiveLearning


class EditMedians(BaseModel):
    """Medians over the last submissions."""

    mean_dsc: float
    added_path_mm: float
    changed_voxels: float


class Submission(BaseModel):
    """What was changed of the prediction of one submission; `counts` says whether it enters the medians."""

    time: str
    image: str
    author: str
    model_version: str
    was_trained_on: bool
    organs: int
    left_out: list[str]
    mean_dsc: float | None
    added_path_mm: float | None
    changed_voxels: int | None
    trouble: str | None
    counts: bool
    running_median: EditMedians | None


class OrganEdits(BaseModel):
    """Edit cost of one organ: number of contours, unchanged and missed ones, and medians."""

    n: int
    unchanged: int
    missed: int
    dsc: float
    added_path_mm: float
    changed_voxels: float
    changed_ml: float


class EditCost(BaseModel):
    """Edit cost over all submissions; `verdict` is a sentence on its course."""

    submissions: list[Submission]
    organs: dict[str, OrganEdits]
    unchanged_share: float | None
    counted: int
    failed: int
    verdict: str


@router.get("/status")
def get_status(_user: User = USER) -> Status:
    """Return labels, training, active model, PACS, scores and history."""
    app = get_app()
    served = _active_model(app)
    return Status(
        served=served,
        inference=InferenceQueueStatus.model_validate(app.inference_queue.state()),
        **views.status(app.retraining, served.version if served else None),
        pacs=None if app.pacs_sync is None else Pacs(**app.pacs_sync.status()),
        active_learning=ActiveLearning(scoring=app.config.scoring, **app.active_learning.status()),
    )


@router.get("/inference")
def get_inference_queue(image: str = "", job: str = "", _user: User = USER) -> InferenceQueueStatus:
    """Return the queue of requests for contours, and the place of the request with an id, or for an image.

    The id is the `job_id` in the parameters of the request.
    """
    queue = get_app().inference_queue
    status = InferenceQueueStatus.model_validate(queue.state())
    place = queue.place(image, request_id=job) if image or job else None
    if place is None:
        return status
    progress = place.progress and InferenceProgress.model_validate(place.progress)
    return status.model_copy(update={"position": place.position, "progress": progress})


@router.delete("/inference/{job}")
def cancel_inference(job: str, _user: User = USER) -> CancelledRequest:
    """Cancel the request for contours with this id; its computation ends within seconds."""
    if not get_app().inference_queue.cancel(job):
        raise DatastoreError(
            f"{job[:MAX_JOB_ID]!r}: no request for contours with this id waits or computes; it has ended"
        )
    return CancelledRequest(job=job)


def _active_model(app: RunningApp) -> Served | None:
    try:
        version = app.served.get().version
    except CheckpointError:
        return None
    latest = next(iter(app.registry.promotions()), {})
    own = latest if latest.get("version") == version else {}
    since, reason, trouble = own.get("since"), own.get("reason"), app.served.fallback_reason
    backend = app.backends.choice_for(version)
    return Served(
        version=version,
        since=since,
        reason=reason,
        trouble=trouble,
        backend=backend.name,
        backend_reason=backend.reason,
    )


def _edit_cost() -> dict[str, Any]:
    return summary(get_app().active_learning.edit_costs.curve())


@router.get("/edit-cost")
def get_edit_cost(_user: User = USER) -> EditCost:
    """Return how much of the predictions was changed, by submission and by organ, and its course."""
    return EditCost(**_edit_cost())


@router.get("/edit-cost.png", response_class=Response, responses=file_of("image/png"))
def get_edit_cost_chart(_user: User = USER) -> Response:
    """Return the edit cost as a chart."""
    picture = edit_chart(_edit_cost())
    return Response(picture, media_type="image/png", headers={"Cache-Control": "no-store"})
