"""Routes from the DICOM series that a viewer shows to the images of this server."""

from fastapi import APIRouter
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel

from lib.errors import DatastoreError
from lib.server.access import USER
from lib.server.bodies import StrictRoute
from lib.server.responses import ERRORS
from lib.server.running_app import RunningApp, get_app

router = APIRouter(prefix="/organnet/series", responses=ERRORS, route_class=StrictRoute)


class Series(BaseModel):
    """A DICOM series that OHIF can open, and the id of its image on this server."""

    image: str
    study_uid: str
    series_uid: str


class AllSeries(BaseModel):
    """All series; why OHIF cannot show others; and the images that are volume files, which need 3D Slicer."""

    series: list[Series]
    refused: dict[str, str]
    volume_files: list[str]


@router.get("")
def get_all_series(_user: User = USER) -> AllSeries:
    """Return the DICOM series that OHIF can open; of a studies folder only with `--conf ohif_folder on`."""
    app = get_app()
    images = app.store.list_images()
    found = [series for image_id in images if (series := _series_of(app, image_id)) is not None]
    if app.pacs_sync is not None:
        return AllSeries(series=found, refused=dict(app.store.refused_images()), volume_files=[])
    refused = {} if app.folder_pacs is None else app.folder_pacs.refused()
    folders = app.store.dicom_folders()
    volume_files = [image_id for image_id in images if image_id not in folders]
    return AllSeries(series=found, refused=refused, volume_files=volume_files)


@router.get("/{series_uid}")
def get_series(series_uid: str, _user: User = USER) -> Series:
    """Return the image of a SeriesInstanceUID; its id is what all other routes expect as `image`."""
    app = get_app()
    importer = app.dicom_importer
    image_id = None if importer is None else importer.image_of_series(series_uid)
    series = None if image_id is None else _series_of(app, image_id)
    if series is None:
        raise DatastoreError(f"{series_uid[:64]}: no image of this server is this DICOM series")
    return series


def _series_of(app: RunningApp, image_id: str) -> Series | None:
    if app.folder_pacs is not None:
        held = app.folder_pacs.series_of(image_id)
        if held is None:
            return None
        return Series(image=image_id, study_uid=held.study_uid, series_uid=held.series_uid)
    info = app.store.get_image_info(image_id)
    if app.pacs_sync is None or "StudyInstanceUID" not in info:
        return None
    return Series(image=image_id, study_uid=info["StudyInstanceUID"], series_uid=image_id)
