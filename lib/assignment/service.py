"""Who sits at which case: leases, reader studies, and what follows from a label that was submitted."""

import logging
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from lib.assignment.consensus_job import ConsensusJob
from lib.assignment.leases import Leases
from lib.assignment.reader_studies import ReaderStudies, may_be_seen, readings_by_reader
from lib.config import AppConfig
from lib.datastores.local import FolderStore
from lib.errors import OrganNetError
from lib.jobs.periodic_task import PeriodicTask
from lib.labels.history import FINAL, LabelHistory
from lib.storage.database import Database
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

CONSENSUS_EVERY_S = 30.0
"""How often readings are looked at where nobody says that there is a new one."""


class Assignments:
    """What the app knows of the people who contour.

    Args:
        database: Where leases and reader studies are.
        folder: Of the database.
        config: The server's.
        history: The versions of the labels.
    """

    def __init__(
        self, database: Database, folder: Path, config: AppConfig, *, history: LabelHistory
    ) -> None:
        self._history = history
        self.leases = Leases(database)
        self.readers = ReaderStudies(database)
        self._folder = folder
        self._config = config
        self._consensus: PeriodicTask | None = None

    def start(self, store: FolderStore) -> PeriodicTask:
        """Make each consensus that is due from now on, and return what does it."""
        maker = ConsensusJob(store, self.readers, self._folder, method=self._config.consensus)
        trouble = "the readings of reader studies could not be looked at"
        self._consensus = PeriodicTask(
            "consensus", maker.run, every_s=CONSENSUS_EVERY_S, error_message=trouble
        ).start()
        return self._consensus

    def wake(self) -> None:
        """Let the readings be looked at now."""
        if self._consensus is not None:
            self._consensus.wake()

    def on_label_submitted(self, image_id: str) -> None:
        """End the lease that a new final label makes needless, and look at the readings; never raises."""
        try:
            self.leases.end_after_submission(image_id)
        except (OrganNetError, SQLAlchemyError):
            logger.exception("%s: the label is kept; its lease ends by itself", image_id)
        self.wake()

    def is_visible_to_all(self, version: LabelVersion) -> bool:
        """Return whether everybody may see a final label: in a reader study not before all have drawn."""
        wanted = self.readers.readers_of(version.image_id)
        if wanted == 1:
            return True
        submitted = readings_by_reader(self._history.history(version.image_id, FINAL))
        return may_be_seen(wanted=wanted, submitted=submitted, asks=None, is_reviewer=False)

    def renew_lease(self, image_id: str, holder: str) -> None:
        """Extend the lease that somebody has of an image, if he has one; never raises."""
        try:
            self.leases.extend_if_held(image_id, holder, 60.0 * self._config.lease_minutes)
        except (OrganNetError, SQLAlchemyError):
            logger.exception("%s: the lease of %r was not extended", image_id, holder)
