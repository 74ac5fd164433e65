"""Labels on their way to the PACS: kept here first, sent when it answers, there once (defect 18)."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from lib.datastores.dicomweb import DicomWebStore
from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.seg import write_seg
from lib.errors import (
    DatastoreError,
    LabelError,
    NotDeliveredError,
    OrganNetError,
    PacsError,
    ScanError,
)
from lib.imaging.dicom_series import read_headers
from lib.imaging.scans import read_label
from lib.imaging.volumes import LabelVolume
from lib.labels.history import FINAL
from lib.pacs.client import Pacs
from lib.pacs.deliveries import DeliveryRecords
from lib.pacs_sync.dicom_export import provenance_of
from lib.pacs_sync.dicom_import import PACS
from lib.storage.atomic_files import SCRATCH
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

CLAIM = "outbox.lock"
"""Beside the database: of several servers over one database one at a time does this."""


class Outbox:
    """Brings the current final labels to a PACS, as DICOM SEG.

    What is to be sent follows from the versions; the SEG's UIDs follow from the version too. So a kill at any
    moment, or an answer that got lost, ends with the label in the PACS once.

    Args:
        store: Scans and labels.
        deliveries: What was sent.
        pacs: The PACS.
        folder: Of the database.
        may_be_sent: Whether a version is for everybody's eyes: not while its image is in a reader study.
    """

    def __init__(
        self,
        store: DicomWebStore,
        deliveries: DeliveryRecords,
        pacs: Pacs,
        folder: Path,
        *,
        may_be_sent: Callable[[LabelVersion], bool],
    ) -> None:
        self._store = store
        self._deliveries = deliveries
        self._pacs = pacs
        self._claim = ProcessLock(folder / CLAIM)
        self._may_be_sent = may_be_sent

    def run(self) -> None:
        """Send what is due; where the PACS does not answer, the rest waits for the next time."""
        if not self._claim.try_acquire():
            return
        try:
            current = [v for v in self._store.history.current(FINAL) if v.source != PACS]
            self._give_up_what_was_replaced(current)
            for version in self._deliveries.due(v for v in current if self._may_be_sent(v)):
                if not self._send(version):
                    return
        finally:
            self._claim.release()

    def _give_up_what_was_replaced(self, current: list[LabelVersion]) -> None:
        numbers = {version.image_id: version.number for version in current}
        for row in self._deliveries.waiting():
            if numbers.get(row.image_id) != row.number:
                reason = "a newer label took its place before it was sent"
                self._deliveries.record_failure(row.sop_uid, reason, is_final=True)

    def _send(self, version: LabelVersion) -> bool:
        """Send one version; return whether there is use in sending the next."""
        about = provenance_of(version, "seg", version.image_id)
        try:
            study_uid = self._store.catalog.require(version.image_id).study_uid
        except (DatastoreError, ScanError):
            # The PACS does not list its scan now; the label is kept here.
            return True
        except PacsError as error:
            # Whatever it was: where only this scan makes the PACS fall silent, the others come first.
            self._deliveries.record_attempt(version, about.sop_instance_uid)
            self._deliveries.record_failure(about.sop_instance_uid, str(error))
            return isinstance(error, NotDeliveredError)
        before = self._deliveries.record_attempt(version, about.sop_instance_uid)
        try:
            # The first try may have arrived, and its answer got lost.
            if not (before and self._pacs.holds(study_uid, about.sop_instance_uid)):
                self._store_seg(version, about)
        except LabelError as error:
            self._deliveries.record_failure(about.sop_instance_uid, str(error), is_final=True)
            logger.info("%s: version %d is not sent: %s", version.image_id, version.number, error)
            return True
        except (OrganNetError, OSError) as error:
            self._deliveries.record_failure(about.sop_instance_uid, str(error))
            logger.warning(
                "%s: version %d is kept, and sent later: %s",
                version.image_id,
                version.number,
                error,
            )
            return isinstance(error, NotDeliveredError) or not isinstance(error, PacsError)
        self._deliveries.record_success(about.sop_instance_uid)
        logger.info("%s: version %d is in the PACS", version.image_id, version.number)
        return True

    def _store_seg(self, version: LabelVersion, about: ObjectProvenance) -> None:
        image_id = version.image_id
        headers, grid = read_headers(self._store.require_image(image_id), image_id=image_id)
        path = self._store.history.path(version.digest)
        array, found = read_label(path, image_id=image_id, image_grid=grid)
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            file = Path(scratch) / f"{about.sop_instance_uid}.dcm"
            write_seg(
                file,
                LabelVolume(array, found, self._store.labels),
                headers,
                about,
                image_id=image_id,
            )
            self._pacs.store(file)
