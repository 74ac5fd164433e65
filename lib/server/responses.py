"""Responses: scans, labels and DICOM objects as files, and errors as HTTP status codes with a message."""

import json
import logging
import re
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from monailabel.config import settings
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydicom.dataset import FileDataset
from requests_toolbelt import MultipartEncoder
from sqlalchemy.exc import OperationalError

from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.objects import Kind, write_object
from lib.errors import (
    CancelledRequestError,
    CheckpointError,
    ConfigError,
    DatastoreError,
    ImageExistsError,
    LabelError,
    NoModelError,
    OrganNetError,
    PacsError,
    QueueFullError,
    ScanError,
    StateError,
    StorageError,
    TrainingError,
    UnknownModelError,
)
from lib.imaging.formats import require_signature
from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.storage.leftovers import scratch_folder
from lib.storage.storage_errors import storage_trouble

logger = logging.getLogger(__name__)

Output = Literal["all", "image", "json"]
BYTES = "application/octet-stream"
DICOM = "application/dicom"

SAVED_LABEL_HEADER = "X-OrganNet-Saved-Label"
"""Header with JSON in ASCII: tag, number, changes and doubts of the version that an inference request saved."""

NO_FILE = "expected a file: a part of the form with a file name"
MAX_DETAIL = 10_000
"""Longest text in an error answer, in characters."""
MAX_INVALID_FIELDS = 20
"""Largest number of invalid fields in an error answer."""

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
    (QueueFullError, 503),
    (CancelledRequestError, 409),
    (StorageError, 507),
)
"""HTTP status of each error class; the first class that matches counts."""


class InvalidField(BaseModel):
    """One invalid field of a request, as FastAPI reports it."""

    loc: list[str | int]
    msg: str
    type: str


class ErrorResponse(BaseModel):
    """Answer to a refused or failed request."""

    detail: str | list[InvalidField]


class RowAnswer(BaseModel):
    """Base of answers that are read from a row of the database."""

    model_config = ConfigDict(from_attributes=True, populate_by_name=True)


IsoTime = Annotated[
    str, BeforeValidator(lambda time: time.isoformat() if isinstance(time, datetime) else time)
]
"""Time of a row in ISO 8601."""

Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {
    "4XX": {"model": ErrorResponse, "description": "Refused; `detail` is the reason."},
    "5XX": {"model": ErrorResponse, "description": "Failed; `detail` is the reason."},
}
"""Error answers of every route, for the OpenAPI schema."""


def file_of(*media_types: str) -> Responses:
    """Return the OpenAPI description of a route that answers with a file of one of these media types."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "The file.", "content": dict.fromkeys(media_types, schema)}}


NO_BODY: Responses = {200: {"description": "It is there."}}
NULL: Responses = {200: {"content": {"application/json": {"schema": {"type": "null"}}}}}


def scan_file(path: Path, image_id: str) -> Response:
    """Return a scan as its file; a DICOM folder as NIfTI, which the clients can load.

    Raises:
        ScanError: If the file is no scan, or the folder is not one regular CT.
    """
    if path.is_file():
        require_signature(path, image_id)
        return FileResponse(path, media_type=BYTES, filename=path.name)
    return written(
        f"{image_id}.nii.gz", lambda target: write_ct(target, read_ct(path, image_id=image_id))
    )


def label_as_nrrd(path: Path, name: str, *, image_id: str) -> Response:
    """Return a label as NRRD, which browsers can read: the scan's voxels in their order, x fastest."""
    array, grid = read_label(path, image_id=image_id, image_grid=None)
    return written(f"{name}.nrrd", lambda target: write_label(target, LabelVolume(array, grid, {})))


def label_as_dicom(
    kind: Kind,
    file: Path,
    labels: Mapping[str, int],
    headers: Sequence[FileDataset],
    about: ObjectProvenance,
    *,
    image_id: str,
    name: str = "",
) -> Response:
    """Return a label file as a DICOM object.

    Args:
        kind: SEG or RTSTRUCT.
        file: The label.
        labels: TG-263 name -> value in the file.
        headers: Headers of the DICOM series that the label was drawn on.
        about: Provenance attributes of the object.
        image_id: The image, for error messages.
        name: File name of the object without suffix; the image id by default.
    """
    array, grid = read_label(file, image_id=image_id, image_grid=None)
    label = LabelVolume(array, grid, labels)
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", name or image_id)
    return written(
        f"{stem}.{kind}.dcm",
        lambda target: write_object(kind, target, label, headers, about, image_id=image_id),
        media_type=DICOM,
    )


def inference_result(file: Path, params: Mapping[str, Any], output: Output) -> Response:
    """Return a label and its parameters in the form that the client asked for, and remove the label's file.

    Slicer asks for both in one multipart answer, OHIF for the label alone. With the label alone, a header says
    as which version it was saved, if it was.
    """
    try:
        content, params_json = file.read_bytes(), json.dumps(params, allow_nan=False)
    finally:
        file.unlink(missing_ok=True)
    if output == "json":
        return Response(params_json, media_type="application/json")
    if output == "image":
        return with_saved_label(_attachment(content, file.name), params)
    form = MultipartEncoder(
        fields={
            "params": (None, params_json, "application/json"),
            "image": (file.name, content, BYTES),
        }
    )
    return Response(form.to_string(), media_type=form.content_type)


def with_saved_label(answer: Response, params: Mapping[str, Any]) -> Response:
    """Return an answer without JSON, with a header about the label that was saved, if one was."""
    saved = params.get("saved_label")
    if saved is not None:
        answer.headers[SAVED_LABEL_HEADER] = json.dumps(saved)
    return answer


def written(name: str, write: Callable[[Path], object], *, media_type: str = BYTES) -> Response:
    """Return the file that `write` writes to the path that it gets."""
    with scratch_folder() as folder:
        path = folder / name
        write(path)
        return _attachment(path.read_bytes(), name, media_type=media_type)


def _attachment(content: bytes, name: str, *, media_type: str = BYTES) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)


def status_of(error: OrganNetError) -> int:
    """Return the HTTP status of an error."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def error_answer(
    detail: str | list[dict[str, Any]], status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return an error as `{"detail": ...}`; long texts are cut, and lone surrogates are escaped."""
    return JSONResponse({"detail": _printable(detail)}, status, headers)


def without_folders(text: str) -> str:
    """Return a message in which files below the server's folders have only their name.

    Messages of libraries contain the path of a file that they cannot read.
    """
    roots = (tempfile.gettempdir(), settings.MONAI_LABEL_STUDIES, settings.MONAI_LABEL_APP_DIR)
    for root in roots:
        if str(root).startswith("/") and len(str(root)) > 1:
            text = re.sub(rf"{re.escape(str(root).rstrip('/'))}/([^\s\"'/]*/)*", "", text)
    return text


def _printable(value: Any) -> Any:
    """Return a text, or all texts of a value, cut and without lone surrogates, which no log can hold either."""
    if isinstance(value, str):
        return without_folders(value)[:MAX_DETAIL].encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    return value


def answer_organnet_error(_request: Request, error: Exception) -> JSONResponse:
    """Return an error of this project as `{"detail": message}`."""
    if not isinstance(error, OrganNetError):
        raise error
    logger.warning("refused: %s", _printable(str(error)))
    headers = {}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(error.retry_after_s)
    return error_answer(str(error), status_of(error), headers)


def answer_monailabel_error(_request: Request, error: Exception) -> JSONResponse:
    """Return an error of MONAI Label, which MONAI Label itself would answer with a bare 500."""
    if not isinstance(error, MONAILabelException):
        raise error
    is_missing = isinstance(error, ImageNotFoundException | LabelNotFoundException)
    is_invalid = error.error == MONAILabelError.INVALID_INPUT
    logger.warning("refused: %s", _printable(str(error.msg)))
    return error_answer(str(error.msg), 404 if is_missing else 400 if is_invalid else 500)


def answer_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Return an invalid request: 400 where a model raised `ConfigError`, else 422 with the invalid fields.

    Unlike FastAPI's answer it does not repeat the input, which JSON may not be able to hold.
    """
    if not isinstance(error, RequestValidationError):
        raise error
    for problem in error.errors():
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, OrganNetError):
            return answer_organnet_error(request, cause)
    problems = error.errors()[:MAX_INVALID_FIELDS]
    return error_answer(
        [
            {
                "loc": p["loc"],
                "msg": NO_FILE if "UploadFile" in p["msg"] else p["msg"],
                "type": p["type"],
            }
            for p in problems
        ],
        422,
    )


def answer_storage_trouble(_request: Request, error: Exception) -> JSONResponse:
    """Return 507 if files cannot be written, also where the database reports it; raise any other error."""
    trouble = storage_trouble(error)
    if not trouble:
        raise error
    logger.error("%s: %s", trouble, _printable(str(error)))
    return error_answer(f"{trouble}; stored data is unchanged", 507)


def answer_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    """Return 500 with an id under which the log has the error; the answer tells nothing about the server."""
    error_id = uuid.uuid4().hex[:12]
    # Without the query, which can name a patient.
    address = f"{request.method} {request.scope['path'][:200]!r}"
    logger.error(
        "unexpected error %s, %s: %s", error_id, address, type(error).__name__, exc_info=error
    )
    return error_answer(
        f"unexpected error {error_id}: the request could not be completed. The server's log has the cause "
        "under this id; please report it",
        500,
    )


def install_error_handlers(app: FastAPI) -> None:
    """Register the handlers of this module."""
    app.add_exception_handler(OSError, answer_storage_trouble)
    app.add_exception_handler(OperationalError, answer_storage_trouble)
    app.add_exception_handler(OrganNetError, answer_organnet_error)
    app.add_exception_handler(MONAILabelException, answer_monailabel_error)
    app.add_exception_handler(RequestValidationError, answer_invalid_request)
    app.add_exception_handler(Exception, answer_unexpected_error)
