"""Background exchange with a PACS: lists, contours, labels and scans; no request waits for it."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.datastores.dicomweb import DicomWebStore
from lib.errors import DatastoreError, NotDeliveredError, PacsError, ScanError
from lib.imaging.dicom_files import read_dicom
from lib.jobs.supervisor import PeriodicTask
from lib.pacs.client import Pacs
from lib.pacs.retry_backoff import RetryBackoff
from lib.pacs_sync import inbox, outbox
from lib.pacs_sync.dicom_labels import DicomImporter
from lib.pacs_sync.inbox import Inbox, ObjectRecords
from lib.pacs_sync.outbox import DeliveryRecords, Outbox
from lib.storage.database import Database
from lib.storage.leftovers import scratch_folder
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

LIST_EVERY_S = 3.0
"""Shortest interval in s between two requests of the PACS's lists."""
MAX_BUSY_SHARE = 0.1
"""Largest share of the time that the PACS spends on these lists; slow lists are requested less often."""
SEND_EVERY_S = 2.0
"""Interval in s between two runs of the outbox."""
FETCH_EVERY_S = 5.0
"""Interval in s between two searches for scans to fetch."""


class PacsSync:
    """Synchronises series lists, labels and scans between this server and a PACS.

    Args:
        store: The store of scans and labels.
        pacs: The PACS.
        database: The workflow database.
        folder: Folder of the database.
        may_be_sent: As in `Outbox`.
        wanted: Returns the images to fetch in advance, most urgent first.
    """

    def __init__(
        self,
        store: DicomWebStore,
        pacs: Pacs,
        database: Database,
        folder: Path,
        *,
        may_be_sent: Callable[[LabelVersion], bool],
        wanted: Callable[[], list[str]],
    ) -> None:
        self._store = store
        self._pacs = pacs
        self._wanted = wanted
        self.importer = DicomImporter(store, store.image_of_series)
        self.deliveries = DeliveryRecords(database, pacs.url)
        self.objects = ObjectRecords(database)
        self.outbox = Outbox(
            store, self.deliveries, pacs, ProcessLock(folder / outbox.LOCK), may_be_sent
        )
        inbox_lock = ProcessLock(folder / inbox.LOCK)
        self._inbox = Inbox(store, self.objects, pacs, self.importer, inbox_lock)
        self.next_list_at = 0.0
        """Time of the next request of the lists, in s of `time.monotonic`."""
        self._error = ""
        self._backoff = RetryBackoff()
        self._listing = PeriodicTask(
            "pacs-list", self.look, every_s=1.0, error_message="the PACS could not be listed"
        )
        self._sending = PeriodicTask(
            "pacs-outbox",
            self.outbox.run,
            every_s=SEND_EVERY_S,
            error_message="labels could not be sent",
        )
        self._fetching = PeriodicTask(
            "pacs-fetch",
            self.fetch_next,
            every_s=FETCH_EVERY_S,
            error_message="scans could not be fetched",
        )

    def start(self) -> "PacsSync":
        """Start the background tasks, and return self."""
        for task in (self._listing, self._sending, self._fetching):
            task.start()
        return self

    def stop(self) -> None:
        """Stop the background tasks."""
        for task in (self._listing, self._sending, self._fetching):
            task.stop()

    def wake(self) -> None:
        """Run the outbox now, for a new label."""
        self._sending.wake()

    def store_object(self, content: bytes) -> str:
        """Store a DICOM object in the PACS, and return its SOPInstanceUID.

        Raises:
            PacsError: If the PACS does not answer, or refuses the object.
        """
        with scratch_folder() as scratch:
            file = Path(scratch) / "object.dcm"
            file.write_bytes(content)
            self._pacs.store(file)
            return str(read_dicom(file, keywords=["SOPInstanceUID"]).SOPInstanceUID)

    def look(self) -> bool:
        """Request the lists if they are due, import new contours, and check one new series.

        Returns:
            Whether to call it again at once.
        """
        is_due = time.monotonic() >= self.next_list_at
        if self._error and not is_due:
            return False
        try:
            if is_due:
                started = time.monotonic()
                self._store.catalog.refresh()
                took_s = time.monotonic() - started
                took_s += self._inbox.run()
                self.next_list_at = time.monotonic() + max(LIST_EVERY_S, took_s / MAX_BUSY_SHARE)
            more = self._store.catalog.check_next()
        except PacsError as error:
            if not self._error:
                logger.warning("%s", error)
            self._error = str(error)
            self.next_list_at = time.monotonic() + LIST_EVERY_S
            return False
        if self._error:
            self._error = ""
            logger.info("the PACS at %s answers again", self._pacs.url)
            self.deliveries.retry_now()
            self._sending.wake()
        return more

    def fetch_next(self) -> bool:
        """Fetch one scan in advance if there is space; return whether to call it again at once."""
        if self._error:
            return False
        cached = self._store.available_images()
        for image_id in self._wanted():
            if image_id in cached or not self._backoff.is_due(image_id):
                continue
            if not self._store.cache.has_room():
                return False
            try:
                self._store.require_image(image_id)
            except (PacsError, ScanError, DatastoreError) as error:
                self._backoff.record_failure(image_id, str(error))
                return isinstance(error, NotDeliveredError) or not isinstance(error, PacsError)
            self._backoff.record_success(image_id)
            return True
        return False

    def status(self) -> dict[str, Any]:
        """Return the state of the exchange, for users."""
        catalog = self._store.catalog
        images = catalog.images()
        cached = images.keys() & self._store.available_images()
        scans = [item for item in self._backoff.undelivered() if item.uid in images.keys() - cached]
        return {
            "url": self._pacs.url,
            "trouble": self._error,
            "images": len(images),
            "at_hand": len(cached),
            "unchecked": len(catalog.unchecked()),
            "refused": catalog.refused(),
            "undelivered": catalog.undelivered() + self._inbox.backoff.undelivered() + scans,
            "outbox": self.deliveries.waiting(),
            "refused_objects": self.objects.refused(),
        }
