"""Routes for contouring a scan and for describing the app.

Paths, forms and answers of all routes are those of MONAI Label 0.8.5, which both clients expect. The
differences: routes are synchronous, so that they run on threads and one inference does not block all other
requests (defect 9); ids, tags and parameters are checked first (defect 11); uploads are always removed
(defect 26).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, File, Form, Response, UploadFile
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict

from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.objects import Kind
from lib.errors import ConfigError
from lib.imaging.archives import unpack_zip
from lib.imaging.dicom_series import read_headers, require_series
from lib.pacs_sync.dicom_labels import MODEL
from lib.server import responses
from lib.server.access import USER, author_of, holder_of
from lib.server.bodies import StrictRoute
from lib.server.datastore_routes import DatastoreCounts
from lib.server.requests import (
    INFER_KEYS,
    MAX_LABEL_BYTES,
    PROMPT_KEYS,
    as_flag,
    only,
    parse_params,
    received,
    stem_of,
)
from lib.server.responses import BYTES, DICOM, ERRORS, file_of
from lib.server.running_app import AppDescription, RunningApp, get_app
from lib.server.session_routes import session_scan

router = APIRouter(responses=ERRORS, route_class=StrictRoute)

Output = responses.Output | Literal["dicom_seg", "rtstruct"]


class TaskInfo(BaseModel):
    """A model, trainer or strategy; unknown keys are MONAI Label's."""

    model_config = ConfigDict(extra="allow")
    description: str
    labels: dict[str, int] = {}
    config: dict[str, Any] = {}


class ModelInfo(TaskInfo):
    """An inference task; `version` is the active model."""

    type: str
    dimension: int
    version: str = ""


class TrainStats(BaseModel):
    """Progress of the last training; empty before the first one."""

    start_ts: str = ""
    epoch: int = 0
    total_epochs: int = 0
    best_metric: float = 0
    best_metric_epoch: int | None = None
    train: dict[str, float | None] = {}
    eval: dict[str, float | None] = {}
    elapsed_s: float = 0
    eta_s: float = 0
    total_time: str = ""
    version: str | None = None
    published: bool = False
    reason: str | None = None


class AppInfo(BaseModel):
    """The parts of the app that clients offer to their users."""

    name: str
    description: str
    version: str
    labels: dict[str, int]
    models: dict[str, ModelInfo]
    trainers: dict[str, TaskInfo]
    strategies: dict[str, TaskInfo]
    scoring: dict[str, TaskInfo]
    train_stats: dict[str, TrainStats]
    datastore: DatastoreCounts


@router.get("/info/", response_model=AppInfo, response_model_exclude_unset=True)
def get_info(_user: User = USER) -> AppDescription:
    """Return models, trainers, strategies and the numbers of images and labels."""
    return get_app().info()


@router.post(
    "/infer/{model}",
    response_class=Response,
    responses=file_of("multipart/form-data", BYTES, "application/json", DICOM),
)
def infer(
    model: str,
    image: str = "",
    session_id: str = "",
    output: Output = "all",
    params: str = Form("{}"),
    file: UploadFile | None = File(None),
    label: UploadFile | None = File(None),
    user: User = USER,
) -> Response:
    """Contour an image of the store, of a session, or of the request; `label` holds scribbles, if any."""
    options = parse_params(params)
    if label is None:
        return _infer(model, image, session_id, output, options, file, user)
    with received(label, limit_bytes=MAX_LABEL_BYTES) as (path,):
        return _infer(model, image, session_id, output, options, file, user, scribbles=path)


def _infer(
    model: str,
    image: str,
    session_id: str,
    output: Output,
    options: Mapping[str, Any],
    file: UploadFile | None,
    user: User,
    scribbles: Path | None = None,
) -> Response:
    app = get_app()
    prompts = {key: options[key] for key in PROMPT_KEYS & set(options)}
    request = {**only(options, INFER_KEYS), **prompts, "model": model, "image": image}
    request["scribbles"] = scribbles
    request["author"] = author_of(user)
    if session_id:
        request |= {"scan": str(session_scan(session_id)), "image": "session"}
        return _contour(app, request, output)
    if file is not None:
        with received(file) as (path,):
            name = stem_of(file)[:80] or "upload"
            scan = unpack_zip(path, path.with_suffix(""), name) if path.suffix == ".zip" else path
            request |= {"scan": str(scan), "image": name}
            return _contour(app, request, output)
    if not image:
        raise ConfigError(
            "no image given: name one of the store (?image=) or of a session (?session_id=), or send a file"
        )
    app.assignments.renew_lease(image, holder_of(user, options.get("client_id")))
    return _contour(app, request, output)


def _contour(app: RunningApp, request: Mapping[str, Any], output: Output) -> Response:
    if output == "dicom_seg":
        return _contour_as_dicom(app, request, "seg")
    if output == "rtstruct":
        return _contour_as_dicom(app, request, "rtstruct")
    return responses.inference_result(*app.infer(request), output)


def _contour_as_dicom(app: RunningApp, request: Mapping[str, Any], kind: Kind) -> Response:
    """Contour a DICOM series, and return the label as a DICOM object.

    Raises:
        ScanError: If the image is not a DICOM series; nothing was contoured then.
        ConfigError: If the request asks for an uncertainty map instead of a label.
        LabelError: If the model found no organ.
    """
    image_id = str(request["image"])
    if as_flag("uncertainty_map", request.get("uncertainty_map", False)):
        raise ConfigError(
            "uncertainty_map: the map cannot be returned as DICOM SEG or RTSTRUCT; "
            "use output=image or output=all"
        )
    scan = request.get("scan")
    folder = require_series(Path(scan) if scan else app.store.require_image(image_id), image_id)
    file, params = app.infer({**request, "result_extension": ".nii.gz", "result_dtype": "uint8"})
    about = ObjectProvenance(
        model=MODEL,
        model_version=str(params["model_version"]),
        is_automatic=True,
        description="OrganNet Label prediction",
    )
    try:
        headers, _ = read_headers(folder, image_id=image_id)
        labels = params["label_names"]
        answer = responses.label_as_dicom(kind, file, labels, headers, about, image_id=image_id)
        return responses.with_saved_label(answer, params)
    finally:
        file.unlink(missing_ok=True)
