"""Outbox: final labels are stored here first, and sent to the PACS once, when it answers (defect 18)."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select, update

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
from lib.labels.history import FINAL, PACS
from lib.pacs.client import Pacs
from lib.pacs.retry_backoff import wait_s
from lib.pacs_sync.dicom_labels import provenance_of
from lib.storage.database import Database
from lib.storage.leftovers import scratch_folder
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import Delivery, LabelVersion, now

logger = logging.getLogger(__name__)

LOCK = "outbox.lock"
"""Lock file beside the database: if several servers share it, only one at a time sends."""


@dataclass(frozen=True)
class DeliveryRecords:
    """The label versions to be sent to one PACS, in the database."""

    database: Database
    pacs: str
    """Address of the PACS."""

    def by_version(self) -> dict[tuple[str, int], Delivery]:
        """Return (image id, version number) -> delivery."""
        query = select(Delivery).where(Delivery.pacs == self.pacs)
        with self.database.reading() as session:
            return {(row.image_id, row.number): row for row in session.scalars(query)}

    def due(
        self, versions: Iterable[LabelVersion], at: datetime | None = None
    ) -> list[LabelVersion]:
        """Return the versions that are to be sent now, the oldest first."""
        moment = at or now()
        not_due = {
            key
            for key, row in self.by_version().items()
            if row.delivered_at is not None or row.is_given_up or row.next_at > moment
        }
        due = [version for version in versions if (version.image_id, version.number) not in not_due]
        return sorted(due, key=lambda version: version.submitted_at)

    def record_attempt(self, version: LabelVersion, sop_uid: str) -> int:
        """Record an attempt to send a version, and return the number of attempts before it."""
        with self.database.writing() as session:
            row = session.get(Delivery, (self.pacs, sop_uid))
            if row is None:
                row = Delivery(
                    pacs=self.pacs,
                    sop_uid=sop_uid,
                    image_id=version.image_id,
                    number=version.number,
                    attempts=0,
                )
                session.add(row)
            earlier = row.attempts
            row.attempts = earlier + 1
            row.next_at = now() + timedelta(seconds=wait_s(row.attempts))
        return earlier

    def record_success(self, sop_uid: str) -> None:
        """Record that the PACS has the object."""
        self._change(sop_uid, delivered_at=now(), error="")

    def record_failure(self, sop_uid: str, error: str, *, is_final: bool = False) -> None:
        """Record the error of an attempt; if `is_final`, it is not sent again."""
        self._change(sop_uid, error=error, is_given_up=is_final)

    def retry_now(self) -> None:
        """Make all waiting deliveries due now, because the PACS answers again."""
        with self.database.writing() as session:
            for row in session.scalars(self._waiting()):
                row.next_at = now()

    def waiting(self) -> list[Delivery]:
        """Return the deliveries that did not arrive yet, sorted by the time of the next attempt."""
        with self.database.reading() as session:
            return list(session.scalars(self._waiting().order_by(Delivery.next_at)))

    def _change(self, sop_uid: str, **values: Any) -> None:
        of_object = (Delivery.pacs == self.pacs, Delivery.sop_uid == sop_uid)
        with self.database.writing() as session:
            session.execute(update(Delivery).where(*of_object).values(**values))

    def _waiting(self) -> Select[Delivery]:
        return select(Delivery).where(
            Delivery.pacs == self.pacs,
            Delivery.delivered_at.is_(None),
            Delivery.is_given_up.is_(False),
        )


@dataclass(frozen=True)
class Outbox:
    """Sends the current final labels to a PACS, as DICOM SEG.

    The versions determine what is to be sent, and the UIDs of the SEG. So even after a kill or a lost answer
    the label is in the PACS exactly once.
    """

    store: DicomWebStore
    deliveries: DeliveryRecords
    pacs: Pacs
    lock: ProcessLock
    may_be_sent: Callable[[LabelVersion], bool]
    """Returns whether a version may be visible to all; not while its reader study is incomplete."""

    def run(self) -> None:
        """Send the versions that are due; if the PACS does not answer, the others wait for the next run."""
        if not self.lock.try_acquire():
            return
        try:
            current = [v for v in self.store.history.current(FINAL) if v.source != PACS]
            self._cancel_replaced_versions(current)
            for version in self.deliveries.due(v for v in current if self.may_be_sent(v)):
                if not self._send(version):
                    return
        finally:
            self.lock.release()

    def _cancel_replaced_versions(self, current: list[LabelVersion]) -> None:
        numbers = {version.image_id: version.number for version in current}
        for row in self.deliveries.waiting():
            if numbers.get(row.image_id) != row.number:
                reason = "a newer label replaced it before it was sent"
                self.deliveries.record_failure(row.sop_uid, reason, is_final=True)

    def _send(self, version: LabelVersion) -> bool:
        """Send one version; return whether to go on with the next one."""
        about = provenance_of(version, "seg", version.image_id)
        try:
            study_uid = self.store.catalog.require(version.image_id).study_uid
        except (DatastoreError, ScanError):
            # The PACS does not list the scan at present; the label stays in the outbox.
            return True
        except PacsError as error:
            # Also if the PACS does not answer: this scan may be the cause, so the others come first.
            self.deliveries.record_attempt(version, about.sop_instance_uid)
            self.deliveries.record_failure(about.sop_instance_uid, str(error))
            return isinstance(error, NotDeliveredError)
        earlier_attempts = self.deliveries.record_attempt(version, about.sop_instance_uid)
        try:
            # An earlier attempt may have succeeded although its answer was lost.
            if not (earlier_attempts and self.pacs.holds(study_uid, about.sop_instance_uid)):
                self._store_seg(version, about)
        except LabelError as error:
            self.deliveries.record_failure(about.sop_instance_uid, str(error), is_final=True)
            logger.info("%s: version %d is not sent: %s", version.image_id, version.number, error)
            return True
        except (OrganNetError, OSError) as error:
            self.deliveries.record_failure(about.sop_instance_uid, str(error))
            name = (version.image_id, version.number)
            logger.warning("%s: version %d is kept here, and sent later: %s", *name, error)
            return isinstance(error, NotDeliveredError) or not isinstance(error, PacsError)
        self.deliveries.record_success(about.sop_instance_uid)
        logger.info("%s: version %d is in the PACS", version.image_id, version.number)
        return True

    def _store_seg(self, version: LabelVersion, about: ObjectProvenance) -> None:
        image_id = version.image_id
        headers, grid = read_headers(self.store.require_image(image_id), image_id=image_id)
        path = self.store.history.path(version.digest)
        array, label_grid = read_label(path, image_id=image_id, image_grid=grid)
        with scratch_folder() as scratch:
            file = Path(scratch) / f"{about.sop_instance_uid}.dcm"
            label = LabelVolume(array, label_grid, self.store.labels)
            write_seg(file, label, headers, about, image_id=image_id)
            self.pacs.store(file)
