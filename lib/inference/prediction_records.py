"""Records of what models drew on the images of the store: organ summaries, digests and uncertainty maps.

    predictions/3f2a....npz    an uncertainty map on the network's grid, in percent

The newest predictions of each image are rows of the workflow database. Their maps are files, of which the
oldest are removed.
"""

import hashlib
import json
import logging
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from sqlalchemy import delete, func, select
from sqlalchemy.exc import SQLAlchemyError

from lib.errors import DatastoreError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray
from lib.inference.organ_summary import OrganSummary
from lib.inference.resampling import ModelGrid, restored_map
from lib.inference.single_pass import ContourResult
from lib.inference.uncertainty import ModelUncertainty
from lib.isolation.inputs import Input
from lib.storage.atomic_files import finite, replacing
from lib.storage.database import Database
from lib.storage.tables import Prediction

logger = logging.getLogger(__name__)

KEPT_PER_IMAGE = 8
"""Number of the newest predictions that are kept of an image."""
KEPT = 20_000
"""Number of the newest predictions that are kept of all images."""
MAP_BYTES = 2**29
"""Largest size of all uncertainty maps in bytes; a map of a 512 x 512 x 120 CT has some 0.3 MB at 4 mm."""

_FOLDER = "predictions"
_SUFFIX = ".npz"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error)


class PredictionRecords:
    """The kept predictions; safe to use from several threads and processes.

    Args:
        database: The workflow database.
        folder: Folder of the database.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self._folder = folder / _FOLDER

    def keep(
        self,
        image_id: str,
        scan: Input,
        result: ContourResult,
        organs: dict[str, OrganSummary],
        *,
        is_deep: bool,
    ) -> None:
        """Record a prediction; never raises, as the contours do not depend on it.

        Args:
            image_id: The image.
            scan: Its files, as they were before they were read.
            result: The contours, with their uncertainty.
            organs: Result of `lib.inference.organ_summary.organ_summaries`.
            is_deep: Whether several passes were averaged.
        """
        row = Prediction(
            image_id=image_id,
            model_version=result.version,
            is_deep=is_deep,
            digest=result.label.digest(),
            scan_state=_state_of(scan),
            organs=finite({name: asdict(organ) for name, organ in organs.items()}),
        )
        try:
            if result.uncertainty is not None:
                self._write_map(self._map_path(row), result.uncertainty)
            self._add(row)
        except (OSError, SQLAlchemyError):
            logger.exception("%s: what is known of its contours could not be kept", image_id)

    def newest(self, image_id: str, scan: Path) -> Prediction:
        """Return the newest prediction of an image.

        Args:
            image_id: The image.
            scan: Its file or folder.

        Raises:
            DatastoreError: If none is kept, or the scan has changed since.
        """
        with self.database.reading() as session:
            of_image = select(Prediction).where(Prediction.image_id == image_id)
            row = session.scalars(of_image.order_by(Prediction.id.desc())).first()
        if row is None or row.scan_state != _state_of(Input(scan)):
            found = (
                "no prediction is kept"
                if row is None
                else "the scan has changed since the last run"
            )
            raise DatastoreError(
                f"{image_id}: {found}; run the model (POST /infer/MODEL?image={image_id})"
            )
        return row

    def uncertainty_percent(self, prediction: Prediction) -> tuple[LabelArray, Grid]:
        """Return the uncertainty map on the CT's grid: uint8, normalised entropy in percent.

        Raises:
            DatastoreError: If it is not kept any more.
        """
        try:
            path = self._map_path(prediction)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                percent, box, frame = stored["percent"], stored["box"], str(stored["frame"])
        except _UNREADABLE as error:
            raise DatastoreError(
                f"{prediction.image_id}: the uncertainty map of the last run is not kept any more; run the "
                "model again"
            ) from error
        x, y, z = (slice(int(start), int(stop)) for start, stop in box)
        grid = _frame_from_json(json.loads(frame))
        values = restored_map(percent.astype(np.float32), grid, (x, y, z))
        return np.rint(values).astype(np.uint8), grid.grid

    def model_of(self, image_id: str, digest: str) -> str | None:
        """Return the model whose prediction has this digest (`LabelVolume.digest`); None if none is kept."""
        query = select(Prediction.model_version).where(
            Prediction.image_id == image_id, Prediction.digest == digest
        )
        with self.database.reading() as session:
            return session.scalars(query.order_by(Prediction.id.desc())).first()

    def _add(self, row: Prediction) -> None:
        is_equal = (
            Prediction.image_id == row.image_id,
            Prediction.model_version == row.model_version,
            Prediction.digest == row.digest,
        )
        of_image = select(Prediction.id).where(Prediction.image_id == row.image_id)
        with self.database.writing() as session:
            session.execute(delete(Prediction).where(*is_equal))
            session.add(row)
            session.flush()
            newest = session.scalars(of_image.order_by(Prediction.id.desc())).all()
            session.execute(delete(Prediction).where(Prediction.id.in_(newest[KEPT_PER_IMAGE:])))
            last = session.scalar(select(func.max(Prediction.id))) or 0
            session.execute(delete(Prediction).where(Prediction.id <= last - KEPT))

    def _map_path(self, row: Prediction) -> Path:
        name = json.dumps([row.image_id, row.model_version, row.is_deep, row.digest])
        return self._folder / (hashlib.sha256(name.encode()).hexdigest()[:32] + _SUFFIX)

    def _write_map(self, path: Path, uncertainty: ModelUncertainty) -> None:
        with replacing(path) as temporary:
            np.savez_compressed(
                temporary,
                percent=np.rint(100 * uncertainty.entropy).astype(np.uint8),
                box=np.array([(part.start, part.stop) for part in uncertainty.box]),
                frame=json.dumps(_frame_as_json(uncertainty.frame)),
            )
        files = [(file.stat(), file) for file in self._folder.glob(f"*{_SUFFIX}")]
        total = 0
        for status, file in sorted(files, key=lambda item: -item[0].st_mtime_ns):
            total += status.st_size
            if total > MAP_BYTES:
                file.unlink(missing_ok=True)


def _state_of(scan: Input) -> str:
    return hashlib.sha256(repr(scan.state).encode()).hexdigest()


def _frame_as_json(frame: ModelGrid) -> dict[str, Any]:
    return {**asdict(frame), "grid": frame.grid.as_json()}


def _frame_from_json(values: dict[str, Any]) -> ModelGrid:
    plain = {key: tuple(value) for key, value in values.items() if key != "grid"}
    return ModelGrid(grid=Grid.from_json(values["grid"]), **plain)
