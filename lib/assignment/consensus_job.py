"""The consensus of a reader study, made beside the requests whenever the readings ask for one."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from lib.assignment import consensus
from lib.assignment.reader_studies import ReaderStudies
from lib.assignment.readings import due
from lib.datastores.local import FolderStore
from lib.errors import DatastoreError, OrganNetError, StateError, StorageFullError
from lib.imaging.scans import read_label
from lib.imaging.volumes import LabelVolume
from lib.labels.history import FINAL
from lib.storage.atomic_files import is_disk_full
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

CLAIM = "consensus.lock"
"""Beside the database: of several servers over one studies folder one at a time does this."""


class ConsensusJob:
    """Makes the consensus of the newest readings the current final label of each image in a reader study.

    What is to be done follows from the versions alone (`lib.assignment.readings.due`), so a kill at any
    moment leaves either a consensus or one that is made next time.

    Args:
        store: The studies.
        studies: Which images several people contour.
        folder: Of the database.
        method: As in `lib.assignment.consensus`.
    """

    def __init__(
        self,
        store: FolderStore,
        studies: ReaderStudies,
        folder: Path,
        *,
        method: consensus.Method,
    ) -> None:
        self._store = store
        self._studies = studies
        self._claim = ProcessLock(folder / CLAIM)
        self._method = method
        self._given_up: dict[str, list[str]] = {}

    def run(self) -> list[LabelVersion]:
        """Make each consensus that is due, and return those."""
        if not self._claim.try_acquire():
            return []
        try:
            made = [self._look(study.image_id) for study in self._studies.all()]
        finally:
            self._claim.release()
        return [version for version in made if version is not None]

    def _look(self, image_id: str) -> LabelVersion | None:
        """Make the consensus of one image if it is due; one that cannot be made does not stop the others."""
        found = due(self._store.history.history(image_id, FINAL))
        digests = [version.digest for version in found]
        if not found or self._given_up.get(image_id) == digests:
            return None
        try:
            self._store.require_image(image_id)
        except DatastoreError:
            # The scan was taken out of the folder; its contours are kept until it comes back.
            return None
        try:
            return self._make(image_id, found)
        except (OrganNetError, OSError, SQLAlchemyError) as error:
            logger.exception("%s: no consensus of the readings could be made", image_id)
            if not isinstance(error, StorageFullError) and not is_disk_full(error):
                self._given_up[image_id] = digests
            return None

    def _make(self, image_id: str, readings: Sequence[LabelVersion]) -> LabelVersion:
        labels = [self._volume(image_id, version) for version in readings]
        names = [str(version.number) for version in readings]
        agreements = consensus.observer_agreement(labels, names)
        about: dict[str, Any] = {
            "method": self._method,
            "of": [version.number for version in readings],
            "agreement": {
                "pairs": [
                    {"of": [int(one), int(other)], "dsc": dsc}
                    for (one, other), dsc in agreements.items()
                ],
                "mean": consensus.mean_agreement(agreements),
            },
        }
        label = consensus.consensus(labels, method=self._method, image_id=image_id)
        return self._store.submissions.submit_consensus(image_id, label, about)

    def _volume(self, image_id: str, version: LabelVersion) -> LabelVolume:
        path = self._store.history.path(version.digest)
        if not path.is_file():
            raise StateError(
                f"{image_id}: the volume of version {version.number} is gone; restore a backup"
            )
        array, grid = read_label(path, image_id=image_id, image_grid=None)
        return LabelVolume(array, grid, self._store.labels)
