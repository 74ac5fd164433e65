"""Routes to training, which runs in a process of its own, one run at a time.

Paths and answers are MONAI Label's, which both clients expect; `lib.retrain` does the work (defects 7, 8, 10).
"""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict, RootModel, TypeAdapter, model_validator

from lib.config import TASK_NAME, RetrainConfig
from lib.errors import DatastoreError
from lib.retrain import views
from lib.server.access import ADMIN, USER
from lib.server.bodies import StrictRoute
from lib.server.requests import (
    ClientOptions,
    OptionalFlag,
    OptionalSeed,
    number_between,
    require_object,
)
from lib.server.responses import ERRORS
from lib.server.running_app import get_app
from lib.storage.tables import Run

router = APIRouter(responses=ERRORS, route_class=StrictRoute)


class TrainOptions(ClientOptions):
    """Options of a training; null or absent leaves the default."""

    max_epochs: Annotated[int | None, number_between(1, 1e6, is_whole=True)] = None
    max_minutes: Annotated[float | None, number_between(0, 1e5)] = None
    seed: OptionalSeed = None
    pretrained: OptionalFlag = None


class AllTrainersOptions(TrainOptions):
    """Options of a training, also under the name of the only trainer."""

    organnet25d: TrainOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_options_of_trainer(cls, values: Any) -> Any:
        nested = require_object(values).get(TASK_NAME)
        return (nested if isinstance(nested, dict) else {}) if nested else values


class TrainingRequest(BaseModel):
    """What a training was asked for."""

    model: str
    max_epochs: int


class TrainingTask(BaseModel):
    """A training as MONAI Label's clients know a task; `end_ts` and `result` are present when it has ended."""

    id: str
    status: str
    model: str
    request: TrainingRequest
    start_ts: str
    details: list[str]
    end_ts: str = ""
    result: str | None = None


class StartedTraining(BaseModel):
    """Outcome of the request for one trainer."""

    result: TrainingTask
    detail: None


def _describe_settings(schema: dict[str, Any]) -> None:
    """Add the settings to the JSON schema, each of its type or null."""
    settings = TypeAdapter(RetrainConfig).json_schema()["properties"]
    schema["properties"] = {
        name: {"anyOf": [{"type": field["type"]}, {"type": "null"}], "title": field["title"]}
        for name, field in settings.items()
    }
    schema["additionalProperties"] = False


class SettingsChange(RootModel[dict[str, Any]]):
    """Settings of retraining to change; null restores the value that the server was started with.

    Values are checked by `RetrainConfig.changed`, which also reads numbers and flags that are sent as text.
    """

    model_config = ConfigDict(json_schema_extra=_describe_settings)


@router.get("/train/", response_model_exclude_unset=True)
def train_status(
    all: bool = False, check_if_running: bool = False, _user: User = USER
) -> TrainingTask | list[TrainingTask]:
    """Return the last training, the running one, or all; 404 where there is none."""
    retraining = get_app().retraining
    if check_if_running:
        active = retraining.runs.active()
        if active is None:
            raise HTTPException(404, "no training is running")
        return _task(active)
    runs = retraining.runs.all(limit=None if all else 1)
    if not runs:
        raise HTTPException(404, "no training was started yet")
    return [_task(run) for run in reversed(runs)] if all else _task(runs[0])


@router.post("/train/", response_model_exclude_unset=True)
def train_all(
    params: AllTrainersOptions | None = None, user: User = ADMIN
) -> dict[str, StartedTraining]:
    """Start every trainer, of which there is one; OHIF calls this route with an empty object."""
    return {TASK_NAME: StartedTraining(result=_start(params, user), detail=None)}


@router.post("/train/{model}", response_model_exclude_unset=True)
def train_model(model: str, params: TrainOptions | None = None, user: User = ADMIN) -> TrainingTask:
    """Start a trainer; 429 while a training is running."""
    if model != TASK_NAME:
        raise DatastoreError(f"{model[:80]!r}: unknown trainer; the only one is {TASK_NAME}")
    return _start(params, user)


@router.delete("/train/", response_model_exclude_unset=True)
def stop_training(user: User = ADMIN) -> TrainingTask | None:
    """Stop the running training, if any; the same request later continues it from its last epoch."""
    stopped = get_app().retraining.stop_training(by=user.username or "")
    return None if stopped is None else _task(stopped)


def _start(options: TrainOptions | None, user: User) -> TrainingTask:
    retraining = get_app().retraining
    if retraining.runs.active() is not None:
        raise HTTPException(429, "a training is already running; DELETE /train/ stops it")
    choices = {} if options is None else options.model_dump(exclude_none=True)
    return _task(retraining.start_training(choices, by=user.username or ""))


def _task(run: Run) -> TrainingTask:
    return TrainingTask(**views.task(get_app().retraining, run, TASK_NAME))


@router.get("/organnet/settings")
def get_settings(_user: User = ADMIN) -> RetrainConfig:
    """Return the current settings of retraining."""
    return get_app().retraining.settings.get()


@router.put("/organnet/settings")
def change_settings(values: SettingsChange, user: User = ADMIN) -> RetrainConfig:
    """Change settings, at once and for later server starts."""
    retraining = get_app().retraining
    changed = retraining.settings.change(values.root, by=user.username or "")
    retraining.scheduler.wake()
    return changed
