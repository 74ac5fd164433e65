"""Errors as HTTP: every refusal has a 4xx status and says why."""

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from sqlalchemy.exc import OperationalError

from lib.errors import (
    CheckpointError,
    ConfigError,
    DatastoreError,
    ImageExistsError,
    LabelError,
    NoModelError,
    OrganNetError,
    PacsError,
    ScanError,
    StateError,
    StorageFullError,
    TrainingError,
    UnknownModelError,
)
from lib.storage.atomic_files import is_disk_full

logger = logging.getLogger(__name__)

STATUS: tuple[tuple[type[OrganNetError], int], ...] = (
    (ConfigError, 400),
    (ScanError, 422),
    (LabelError, 422),
    (ImageExistsError, 409),
    (DatastoreError, 404),
    (NoModelError, 409),
    (UnknownModelError, 404),
    (TrainingError, 409),
    (StateError, 409),
    (PacsError, 502),
    (CheckpointError, 503),
    (StorageFullError, 507),
)
"""The first class that fits gives the status."""


def status_of(error: OrganNetError) -> int:
    """Return the HTTP status that tells a client what kind of error it is."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def answer_organnet_error(_request: Request, error: Exception) -> JSONResponse:
    """Return an error of ours as `{"detail": message}`."""
    if not isinstance(error, OrganNetError):
        raise error
    logger.warning("refused: %s", error)
    return JSONResponse({"detail": str(error)}, status_of(error))


def answer_monailabel_error(_request: Request, error: Exception) -> JSONResponse:
    """Return an error of MONAI Label's, which it would itself answer with a bare 500."""
    if not isinstance(error, MONAILabelException):
        raise error
    is_missing = isinstance(error, ImageNotFoundException | LabelNotFoundException)
    is_wrong = error.error == MONAILabelError.INVALID_INPUT
    logger.warning("refused: %s", error.msg)
    return JSONResponse({"detail": error.msg}, 404 if is_missing else 400 if is_wrong else 500)


def answer_full_disk(_request: Request, error: Exception) -> JSONResponse:
    """Return 507 where the disk, and the database on it, take nothing more; raise anything else."""
    if not is_disk_full(error):
        raise error
    logger.error("the disk is full: %s", error)
    return JSONResponse(
        {"detail": "the disk is full; everything that was stored is untouched"}, 507
    )


def install(app: FastAPI) -> None:
    """Answer our errors, MONAI Label's, and those of a full disk."""
    app.add_exception_handler(OSError, answer_full_disk)
    app.add_exception_handler(OperationalError, answer_full_disk)
    app.add_exception_handler(OrganNetError, answer_organnet_error)
    app.add_exception_handler(MONAILabelException, answer_monailabel_error)
