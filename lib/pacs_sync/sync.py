"""What goes between this server and a PACS, beside the requests: none of them waits for the PACS."""

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom

from lib.datastores.dicomweb import DicomWebStore
from lib.errors import DatastoreError, NotDeliveredError, PacsError, ScanError
from lib.jobs.periodic_task import PeriodicTask
from lib.pacs.client import Pacs
from lib.pacs.deliveries import DeliveryRecords
from lib.pacs.retry_backoff import RetryBackoff
from lib.pacs_sync.dicom_import import DicomImporter
from lib.pacs_sync.inbox import Inbox
from lib.pacs_sync.object_records import ObjectRecords
from lib.pacs_sync.outbox import Outbox
from lib.storage.atomic_files import SCRATCH
from lib.storage.database import Database
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 3.0
"""How often the PACS is asked what is new."""
SHARE = 0.1
"""Of the time, at most, that the PACS is busy with that: a list that takes it long is asked for less often."""
SEND_EVERY_S = 2.0
FETCH_EVERY_S = 5.0


class PacsSync:
    """Lists, labels and scans on their way.

    Args:
        store: Scans and labels.
        pacs: The PACS.
        database: The workflow's.
        folder: Of the database.
        may_be_sent: As in `Outbox`.
        wanted: Returns the images that will be wanted, first those that are wanted first.
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
        self.importer = DicomImporter(store)
        self.deliveries = DeliveryRecords(database, pacs.url)
        self.objects = ObjectRecords(database)
        self.outbox = Outbox(store, self.deliveries, pacs, folder, may_be_sent=may_be_sent)
        self._inbox = Inbox(store, self.objects, pacs, self.importer, folder=folder)
        self._next_look = 0.0
        self._trouble = ""
        self._later = RetryBackoff()
        trouble = "the PACS could not be asked"
        self._looking = PeriodicTask("pacs-list", self.look, every_s=1.0, error_message=trouble)
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
        """Begin, and return this."""
        for one in (self._looking, self._sending, self._fetching):
            one.start()
        return self

    def stop(self) -> None:
        """End."""
        for one in (self._looking, self._sending, self._fetching):
            one.stop()

    def wake(self) -> None:
        """Let a new label be sent now."""
        self._sending.wake()

    def store_object(self, content: bytes) -> str:
        """Store a DICOM object in the PACS, and return its SOPInstanceUID.

        Raises:
            PacsError: If the PACS does not answer, or does not take it.
        """
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            file = Path(scratch) / "object.dcm"
            file.write_bytes(content)
            self._pacs.store(file)
            return str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)

    def ask_now(self) -> None:
        """Let the next look ask for the list, whenever the last one was."""
        self._next_look = 0.0

    def look(self) -> bool:
        """Ask for the list where it is time, judge one new series, and take what others drew.

        Returns:
            Whether there is more to do at once.
        """
        is_time = time.monotonic() >= self._next_look
        if self._trouble and not is_time:
            return False
        try:
            if is_time:
                began = time.monotonic()
                self._store.catalog.refresh()
                took_s = time.monotonic() - began
                took_s += self._inbox.run()
                self._next_look = time.monotonic() + max(LOOK_EVERY_S, took_s / SHARE)
            more = self._store.catalog.check_next()
        except PacsError as error:
            if not self._trouble:
                logger.warning("%s", error)
            self._trouble = str(error)
            self._next_look = time.monotonic() + LOOK_EVERY_S
            return False
        if self._trouble:
            self._trouble = ""
            logger.info("the PACS at %s answers again", self._pacs.url)
            self.deliveries.retry_now()
            self._sending.wake()
        return more

    def fetch_next(self) -> bool:
        """Fetch one scan that will be wanted, while there is room; return whether to go on at once."""
        if self._trouble:
            return False
        for image_id in self._wanted():
            if self._store.is_available(image_id) or not self._later.is_due(image_id):
                continue
            if not self._store.cache.has_room():
                return False
            try:
                self._store.require_image(image_id)
            except (PacsError, ScanError, DatastoreError) as error:
                self._later.record_failure(image_id, str(error))
                return isinstance(error, NotDeliveredError) or not isinstance(error, PacsError)
            self._later.record_success(image_id)
            return True
        return False

    def status(self) -> dict[str, Any]:
        """Return how it stands, for people."""
        catalog = self._store.catalog
        waiting = self.deliveries.waiting()
        images = catalog.images()
        at_hand = {image_id for image_id in images if self._store.is_available(image_id)}
        fetched_later = [
            one for one in self._later.undelivered() if one.uid in images.keys() - at_hand
        ]
        return {
            "url": self._pacs.url,
            "trouble": self._trouble,
            "images": len(images),
            "at_hand": len(at_hand),
            "unchecked": len(catalog.unchecked()),
            "refused": catalog.refused(),
            "undelivered": [
                {
                    "uid": one.uid,
                    "reason": one.reason,
                    "attempts": one.attempts,
                    "next_try": one.next_at.isoformat(),
                }
                for one in catalog.undelivered() + self._inbox.undelivered() + fetched_later
            ],
            "outbox": [
                {
                    "image": row.image_id,
                    "number": row.number,
                    "attempts": row.attempts,
                    "next_try": row.next_at.isoformat(),
                    "trouble": row.trouble,
                }
                for row in waiting
            ],
            "refused_objects": [
                {"sop_instance_uid": row.sop_uid, "image": row.image_id, "reason": row.reason}
                for row in self.objects.refused()
            ],
        }
