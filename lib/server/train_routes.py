"""The routes to training, which runs in a process of its own, one at a time.

Paths and answers are MONAI Label's, which both clients know; what runs is `lib.retrain` (defects 7, 8 and 10).
"""

from typing import Any

from fastapi import APIRouter, HTTPException
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from lib.retrain import status
from lib.retrain.service import RetrainingService
from lib.server.requests import train_options
from lib.server.roles import ADMIN, USER
from lib.storage.tables import Run

router = APIRouter(prefix="/train")


@router.get("/")
def train_status(all: bool = False, check_if_running: bool = False, _user: User = USER) -> Any:
    """Return the last training; 404 where there is none, or none is running."""
    retraining: RetrainingService = app_instance().retraining
    if check_if_running:
        active = retraining.runs.active()
        if active is None:
            raise HTTPException(404, "no training runs")
        return _task(active)
    runs = retraining.runs.all(limit=None if all else 1)
    if not runs:
        raise HTTPException(404, "there was no training yet")
    return [_task(run) for run in reversed(runs)] if all else _task(runs[0])


@router.post("/")
def train_all(params: dict[str, Any] | None = None, user: User = ADMIN) -> Any:
    """Start every trainer, of which there is one; OHIF calls this, with nothing in it."""
    given = params or {}
    models = app_instance().info()["trainers"]
    return {m: {"result": _start(m, given.get(m) or given, user), "detail": None} for m in models}


@router.post("/{model}")
def train_model(model: str, params: dict[str, Any] | None = None, user: User = ADMIN) -> Any:
    """Start a trainer; 429 where one is running."""
    return _start(model, params, user)


@router.delete("/")
def stop_training(user: User = ADMIN) -> Any:
    """Stop the training that runs, if any; asked for again, it goes on from its last epoch."""
    stopped = app_instance().retraining.halt(by=user.username or "")
    return None if stopped is None else _task(stopped)


def _start(model: str, params: Any, user: User) -> Any:
    wishes = train_options(params)
    app = app_instance()
    app.require_trainer(model)
    active = app.retraining.runs.active()
    if active is not None:
        raise HTTPException(429, "a training is running already; DELETE /train/ stops it")
    return _task(app.retraining.begin(wishes, by=user.username or ""))


def _task(run: Run) -> dict[str, Any]:
    return status.task(app_instance().retraining, run, app_instance().trained_model)
