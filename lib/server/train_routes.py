"""The routes to training, which runs in a process of its own, one at a time."""

import time
from typing import Any

from fastapi import APIRouter, HTTPException
from monailabel.endpoints import train
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes

from lib.server.requests import train_wishes
from lib.server.roles import ADMIN, USER

START_LIMIT_S = 10.0
"""A training that was asked for has a process after this time."""

router = APIRouter(prefix="/train")


@router.get("/")
def train_status(all: bool = False, check_if_running: bool = False, _user: User = USER) -> Any:
    """Return the last training; 404 where there is none, or none is running."""
    return train.status(all, check_if_running)


@router.post("/")
def train_all(params: dict[str, Any] | None = None, _user: User = ADMIN) -> Any:
    """Start every trainer, of which there is one; OHIF calls this, with nothing in it."""
    given = params or {}
    models = app_instance().info()["trainers"]
    return {m: {"result": _start(m, given.get(m) or given), "detail": None} for m in models}


@router.post("/{model}")
def train_model(model: str, params: dict[str, Any] | None = None, _user: User = ADMIN) -> Any:
    """Start a trainer; 429 where one is running."""
    return _start(model, params)


@router.delete("/")
def stop_training(_user: User = ADMIN) -> Any:
    """Stop the training that runs, if any; the next one goes on from its last epoch."""
    return stop()


def stop() -> Any:
    """Stop the training that runs, or is about to; return it, or None."""
    waited_s = 0.0
    while _last_status() == "SUBMITTED" and not processes("train") and waited_s < START_LIMIT_S:
        time.sleep(0.1)
        waited_s += 0.1
    return train.stop()


def _start(model: str, params: Any) -> Any:
    wishes = train_wishes(params)
    # MONAI Label looks for a process only, and so starts a second one before the first has its own.
    if _last_status() in ("SUBMITTED", "RUNNING"):
        raise HTTPException(429, "a training is running already; DELETE /train/ stops it")
    app_instance().require_trainable(model)
    return train.run_model(model, wishes, run_sync=False, enqueue=False)


def _last_status() -> str | None:
    last, _ = AsyncTask.status("train")
    return last["status"] if last else None
