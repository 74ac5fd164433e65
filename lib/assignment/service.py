"""Assignment of cases: leases, reader studies, and the background job that makes their consensus."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from lib.assignment import consensus
from lib.assignment.leases import Leases
from lib.assignment.reader_studies import (
    ReaderStudies,
    due_readings,
    may_be_seen,
    readings_by_reader,
)
from lib.assignment.unsuitable_images import UnsuitableImages
from lib.config import AppConfig
from lib.datastores.local import FolderStore
from lib.errors import DatastoreError, OrganNetError, ScanError
from lib.imaging.scans import read_label
from lib.imaging.volumes import LabelVolume
from lib.jobs.supervisor import PeriodicTask
from lib.labels.history import FINAL, LabelHistory
from lib.storage.database import Database
from lib.storage.process_locks import ProcessLock
from lib.storage.storage_errors import storage_trouble
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

CONSENSUS_EVERY_S = 30.0
"""Interval in s between two runs of the consensus job; a new reading starts one at once."""
LOCK = "consensus.lock"
"""Lock file beside the database: of several servers over one studies folder, one runs the job at a time."""


@dataclass(frozen=True)
class ConsensusJob:
    """Stores the consensus of the newest readings as the final label of each image in a reader study.

    The versions alone determine what is due (`lib.assignment.reader_studies.due_readings`), so after a kill
    at any moment the consensus is either stored, or made in the next run.
    """

    store: FolderStore
    studies: ReaderStudies
    lock: ProcessLock
    method: consensus.Method
    _failed: dict[str, list[str]] = field(default_factory=dict, init=False)
    """Image id -> digests of readings whose consensus cannot be made; it is not tried again."""

    def run(self) -> list[LabelVersion]:
        """Make each consensus that is due, and return the new versions."""
        if not self.lock.try_acquire():
            return []
        try:
            versions = [self._make_if_due(study.image_id) for study in self.studies.all()]
        finally:
            self.lock.release()
        return [version for version in versions if version is not None]

    def _make_if_due(self, image_id: str) -> LabelVersion | None:
        """Make the consensus of one image if it is due; an error does not stop the other images."""
        readings = due_readings(self.store.history.history(image_id, FINAL))
        digests = [version.digest for version in readings]
        if not readings or self._failed.get(image_id) == digests:
            return None
        try:
            self.store.require_image(image_id)
        except (DatastoreError, ScanError):
            # The scan was removed from the folder, or cannot be read; its labels are kept until it returns.
            return None
        try:
            return self._make(image_id, readings)
        except (OrganNetError, OSError, SQLAlchemyError) as error:
            logger.exception("%s: the consensus of the readings could not be made", image_id)
            if not storage_trouble(error):
                self._failed[image_id] = digests
            return None

    def _make(self, image_id: str, readings: Sequence[LabelVersion]) -> LabelVersion:
        labels = [self._volume(version) for version in readings]
        names = [str(version.number) for version in readings]
        agreements = consensus.observer_agreement(labels, names)
        pairs = [
            {"of": [int(first), int(second)], "dsc": dsc}
            for (first, second), dsc in agreements.items()
        ]
        about: dict[str, Any] = {
            "method": self.method,
            "of": [version.number for version in readings],
            "agreement": {"pairs": pairs, "mean": consensus.mean_agreement(agreements)},
        }
        label = consensus.consensus(labels, method=self.method, image_id=image_id)
        return self.store.submissions.submit_consensus(image_id, label, about)

    def _volume(self, version: LabelVersion) -> LabelVolume:
        path = self.store.history.volume(version)
        array, grid = read_label(path, image_id=version.image_id, image_grid=None)
        return LabelVolume(array, grid, self.store.labels)


class Assignments:
    """Leases and reader studies of one studies folder.

    Args:
        database: The workflow database.
        folder: Folder of the database.
        config: The server's configuration.
        history: The label versions.
    """

    def __init__(
        self, database: Database, folder: Path, config: AppConfig, *, history: LabelHistory
    ) -> None:
        self._history = history
        self.leases, self.readers = Leases(database), ReaderStudies(database)
        self.unsuitable = UnsuitableImages(database)
        self._folder = folder
        self._config = config
        self._consensus: PeriodicTask | None = None

    def start(self, store: FolderStore) -> PeriodicTask:
        """Start the consensus job, and return its task."""
        lock = ProcessLock(self._folder / LOCK)
        job = ConsensusJob(store, self.readers, lock, self._config.consensus)
        self._consensus = PeriodicTask(
            "consensus",
            job.run,
            every_s=CONSENSUS_EVERY_S,
            error_message="the consensus job of reader studies failed",
        ).start()
        return self._consensus

    def wake(self) -> None:
        """Run the consensus job now."""
        if self._consensus is not None:
            self._consensus.wake()

    def on_label_submitted(self, image_id: str) -> None:
        """End the leases that a new final label completes, and run the consensus job; never raises."""
        try:
            self.leases.end_after_submission(image_id)
        except (OrganNetError, SQLAlchemyError):
            logger.exception("%s: the label is kept; its lease stays until it expires", image_id)
        self.wake()

    def is_visible_to_all(self, version: LabelVersion) -> bool:
        """Return whether all users may see a final label: in a reader study, once all readers submitted."""
        wanted = self.readers.readers_of(version.image_id)
        if wanted == 1:
            return True
        submitted = readings_by_reader(self._history.history(version.image_id, FINAL))
        return may_be_seen(wanted=wanted, submitted=submitted, requester=None, is_reviewer=False)

    def renew_lease(self, image_id: str, holder: str) -> None:
        """Extend the lease that a user has of an image, if there is one; never raises."""
        try:
            self.leases.extend_if_held(image_id, holder, 60.0 * self._config.lease_minutes)
        except (OrganNetError, SQLAlchemyError):
            logger.exception("%s: the lease of %r was not extended", image_id, holder)
