"""Inbox: import of each SEG and RTSTRUCT in the PACS, drawn on a scan of the store, as one label version."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from sqlalchemy import select

from lib.datastores.dicomweb import DicomWebStore
from lib.dicom.object_attributes import MANUFACTURER, referenced_series, sequence_items
from lib.dicom.objects import KINDS, MODALITIES
from lib.errors import LabelError, NotDeliveredError, OrganNetError, PacsError, ScanError
from lib.imaging.dicom_files import PARSING_ERRORS, is_damage
from lib.labels.history import PACS
from lib.pacs.client import Pacs
from lib.pacs.retry_backoff import RetryBackoff
from lib.pacs_sync.dicom_labels import (
    DicomImporter,
    author_of_object,
    provenance_of,
    read_header,
)
from lib.storage.database import Database
from lib.storage.leftovers import scratch_folder
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import PacsObject, PacsObjectScans, now

logger = logging.getLogger(__name__)

LOCK = "inbox.lock"
"""Lock file beside the database: if several servers share it, only one at a time reads the PACS."""
KEPT = "kept"
OURS = "ours"
REFUSED = "refused"
WAITING = "waiting"
"""Values of `PacsObject.verdict`."""


@dataclass(frozen=True)
class ObjectRecords:
    """Processing status of each SEG and RTSTRUCT of the PACS, in the database."""

    database: Database

    def by_uid(self) -> dict[str, PacsObject]:
        """Return SOPInstanceUID -> status of the object."""
        with self.database.reading() as session:
            return {row.sop_uid: row for row in session.scalars(select(PacsObject))}

    def scans(self) -> dict[str, dict[str, int | None]]:
        """Return SOPInstanceUID -> series it was drawn on -> number of slices when it was processed."""
        with self.database.reading() as session:
            return {row.sop_uid: row.slices for row in session.scalars(select(PacsObjectScans))}

    def refused(self) -> list[PacsObject]:
        """Return the refused objects, with the reason, oldest first."""
        query = select(PacsObject).where(PacsObject.verdict == REFUSED)
        with self.database.reading() as session:
            return list(session.scalars(query.order_by(PacsObject.looked_at)))

    def save(self, row: PacsObject, slices: Mapping[str, int | None]) -> None:
        """Store the status of an object and the slices of its scans, in place of an earlier status."""
        row.looked_at = now()
        with self.database.writing() as session:
            session.merge(row)
            session.merge(PacsObjectScans(sop_uid=row.sop_uid, slices=dict(slices)))


@dataclass(frozen=True)
class Inbox:
    """Imports contours from a PACS, except those that this server sent there.

    Each becomes a version with its author and creation time; the newest version of a scan is current.
    """

    store: DicomWebStore
    objects: ObjectRecords
    pacs: Pacs
    importer: DicomImporter
    lock: ProcessLock
    backoff: RetryBackoff = field(default_factory=RetryBackoff)
    """The objects that the PACS lists and did not deliver."""

    def run(self) -> float:
        """Import new objects; objects that the PACS does not deliver wait for a while.

        Returns:
            Time in s that the PACS took for its lists, which are requested in each run.

        Raises:
            PacsError: If the PACS does not answer.
        """
        if not self.lock.try_acquire():
            return 0.0
        try:
            started = time.monotonic()
            listed = [
                item for modality in MODALITIES for item in self.pacs.instances(Modality=modality)
            ]
            took_s = time.monotonic() - started
            self.backoff.forget_all_but({str(item.SOPInstanceUID) for item in listed})
            done = self._unchanged_objects()
            for item in listed:
                uid = str(item.SOPInstanceUID)
                if uid not in done and self.backoff.is_due(uid):
                    self._import_with_backoff(item)
        finally:
            self.lock.release()
        return took_s

    def _unchanged_objects(self) -> set[str]:
        """Return the objects whose result would be the same as before."""
        images, slices = self.store.catalog.images(), self.store.catalog.slices()
        scans = self.objects.scans()

        def is_unchanged(uid: str, row: PacsObject) -> bool:
            known_slices = scans.get(uid, {row.image_id: None})
            if row.verdict == WAITING:
                return not any(series in images for series in known_slices)
            if row.verdict == REFUSED and row.image_id in images:
                # Try again if more slices of its scan have arrived since.
                return known_slices.get(row.image_id) == slices[row.image_id]
            return True

        return {uid for uid, row in self.objects.by_uid().items() if is_unchanged(uid, row)}

    def _import_with_backoff(self, item: Dataset) -> None:
        uid = str(item.SOPInstanceUID)
        try:
            self._import(item)
        except PacsError as error:
            # Also if the PACS does not answer: this object may be the cause, so the others come first.
            self.backoff.record_failure(uid, str(error))
            if not isinstance(error, NotDeliveredError):
                raise
        else:
            self.backoff.record_success(uid)

    def _import(self, item: Dataset) -> None:
        row = PacsObject(
            sop_uid=str(item.SOPInstanceUID),
            series_uid=str(item.SeriesInstanceUID),
            study_uid=str(item.StudyInstanceUID),
            image_id="",
            reason="",
        )
        slices = self.store.catalog.slices()
        series_uids: set[str] = set()
        with scratch_folder() as scratch:
            file = Path(scratch) / "object.dcm"
            self.pacs.fetch_instance(row.study_uid, row.series_uid, row.sop_uid, file)
            try:
                header = read_header(file)
                series_uids = referenced_series(header)
                image_id = self.importer.image_of(header)
                row.image_id = image_id or next(iter(sorted(series_uids)), "")
                if image_id is None:
                    row.verdict = WAITING
                elif row.sop_uid in self._sent_uids(image_id):
                    row.verdict = OURS
                else:
                    _require_human_contours(header)
                    self._submit(file, header, image_id)
                    row.verdict = KEPT
            except (OrganNetError, *PARSING_ERRORS) as error:
                if not isinstance(error, LabelError | ScanError) and not is_damage(error):
                    raise
                row.verdict, row.reason = REFUSED, str(error)
                logger.warning("object %s in the PACS is no label: %s", row.sop_uid, error)
        self.objects.save(row, {series: slices.get(series) for series in series_uids})

    def _submit(self, file: Path, header: Dataset, image_id: str) -> None:
        about = {
            "author": author_of_object(header),
            "client_id": str(header.get("Manufacturer") or PACS),
            "series_instance_uid": str(header.SeriesInstanceUID),
        }
        self.importer.import_object(file, header, image_id, about, source=PACS)

    def _sent_uids(self, image_id: str) -> set[str]:
        """Return the UIDs of the objects that this server sent or received, derived from the label versions."""
        versions = self.store.history.history(image_id)
        sent = {
            provenance_of(v, kind, image_id).sop_instance_uid for v in versions for kind in KINDS
        }
        return sent | {str(v.info.get("sop_instance_uid", "")) for v in versions}


def _require_human_contours(header: Dataset) -> None:
    """Raise LabelError for an object of this program in which a model drew all contours.

    They are marked by SegmentAlgorithmType (0062,0008) or ROIGenerationAlgorithm (3006,0036).
    """
    if header.get("Manufacturer") != MANUFACTURER:
        return
    segments = sequence_items(header, "SegmentSequence")
    rois = sequence_items(header, "StructureSetROISequence")
    algorithms = {item.get("SegmentAlgorithmType") for item in segments}
    algorithms |= {item.get("ROIGenerationAlgorithm") for item in rois}
    if algorithms == {"AUTOMATIC"}:
        raise LabelError(
            f"{header.SOPInstanceUID}: all contours are a model's and were not reviewed; open them, correct "
            "them, and store them under a person's name"
        )
