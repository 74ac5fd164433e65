"""Routes to what is known of the contours that the model drew last: organ summaries and uncertainty map."""

from typing import Literal

from fastapi import APIRouter, Response
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, Field

from lib.imaging.formats import write_volume
from lib.server.access import USER
from lib.server.bodies import StrictRoute
from lib.server.responses import BYTES, ERRORS, IsoTime, RowAnswer, file_of, written
from lib.server.running_app import RunningApp, get_app
from lib.storage.identifiers import require_image_id
from lib.storage.tables import Prediction as PredictionRow

router = APIRouter(prefix="/organnet/predictions", responses=ERRORS, route_class=StrictRoute)

PointMm = tuple[float, float, float]


class UncertainSlice(BaseModel):
    """The slice of the CT on which an organ is most uncertain.

    `index` counts from 0 along `axis` of the CT's voxels, 2 for axial slices. `position_mm` is the organ's
    centre on it, in mm LPS.
    """

    axis: int
    index: int
    position_mm: PointMm


class OrganSummary(BaseModel):
    """What is known of one contour; a number that is missing or means nothing is null, and `reason` says why.

    `uncertainty` is the mean entropy of the model over the organ, 0 (certain) to 1. `is_cut` says whether the
    organ reaches the edge of the CT. `doubts` are its implausible properties, one sentence each.
    """

    uncertainty: float | None
    volume_ml: float | None
    centre_mm: PointMm | None
    uncertain_slice: UncertainSlice | None
    is_cut: bool | None
    doubts: list[str]
    reason: str


class Prediction(RowAnswer):
    """The last contours of a model on an image; `organs` holds every organ of the model by TG-263 name."""

    image: str = Field(validation_alias="image_id")
    model_version: str
    is_deep: bool
    computed_at: IsoTime
    organs: dict[str, OrganSummary]


@router.get("/{image}")
def get_prediction(image: str, _user: User = USER) -> Prediction:
    """Return the summary of each organ of the last prediction of an image, without a new run."""
    return Prediction.model_validate(_newest(get_app(), image))


@router.get("/{image}/uncertainty", response_class=Response, responses=file_of(BYTES))
def get_uncertainty_map(
    image: str, format: Literal["nii.gz", "nrrd"] = "nii.gz", _user: User = USER
) -> Response:
    """Return the uncertainty of the last prediction as a volume on the CT's voxels: uint8, 0 to 100 %, gzip."""
    app = get_app()
    percent, grid = app.predictions.uncertainty_percent(_newest(app, image))
    return written(
        f"{image}-uncertainty.{format}", lambda target: write_volume(target, percent, grid)
    )


def _newest(app: RunningApp, image: str) -> PredictionRow:
    image_id = require_image_id(image)
    return app.predictions.newest(image_id, app.store.require_image(image_id))
