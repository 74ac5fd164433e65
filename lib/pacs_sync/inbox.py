"""Contours that others put into the PACS: each SEG and RTSTRUCT of our scans becomes a label version, once."""

import logging
import tempfile
import time
from pathlib import Path

from pydicom.dataset import Dataset

from lib.datastores.dicomweb import DicomWebStore
from lib.dicom.object_attributes import MANUFACTURER, referenced_series, sequence_items
from lib.dicom.objects import KINDS, MODALITIES
from lib.errors import LabelError, NotDeliveredError, PacsError, ScanError
from lib.pacs.client import Pacs
from lib.pacs.retry_backoff import RetryBackoff, Undelivered
from lib.pacs_sync.dicom_export import provenance_of
from lib.pacs_sync.dicom_import import PACS, DicomImporter, author_of_object, read_header
from lib.pacs_sync.object_records import KEPT, OURS, REFUSED, WAITING, ObjectRecords
from lib.storage.atomic_files import SCRATCH
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import PacsObject

logger = logging.getLogger(__name__)

CLAIM = "inbox.lock"
"""Beside the database: of several servers over one database one at a time does this."""


ODD = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What comes of an object that no reader foresaw: it must not keep those after it from being looked at."""


class Inbox:
    """Takes what is drawn on our scans from a PACS; what we sent there ourselves is left.

    All are kept, with their authors and the time that they were drawn at; of one scan's the newest is current.

    Args:
        store: Scans and labels.
        objects: What was looked at.
        pacs: The PACS.
        importer: Makes versions of objects.
        folder: Of the database.
    """

    def __init__(
        self,
        store: DicomWebStore,
        objects: ObjectRecords,
        pacs: Pacs,
        importer: DicomImporter,
        *,
        folder: Path,
    ) -> None:
        self._store = store
        self._objects = objects
        self._pacs = pacs
        self._importer = importer
        self._claim = ProcessLock(folder / CLAIM)
        self._later = RetryBackoff()

    def undelivered(self) -> list[Undelivered]:
        """Return the objects that the PACS lists and was asked for in vain."""
        return self._later.undelivered()

    def run(self) -> float:
        """Look at what is new; what the PACS does not deliver is left out for a while.

        Returns:
            How many seconds the PACS took for its lists, which it is asked for each time; what is new is
            fetched once.

        Raises:
            PacsError: If the PACS does not answer.
        """
        if not self._claim.try_acquire():
            return 0.0
        try:
            began = time.monotonic()
            found = [
                item for modality in MODALITIES for item in self._pacs.instances(Modality=modality)
            ]
            took_s = time.monotonic() - began
            self._later.forget_all_but({str(item.SOPInstanceUID) for item in found})
            done = self._done()
            for item in found:
                uid = str(item.SOPInstanceUID)
                if uid not in done and self._later.is_due(uid):
                    self._try(item)
        finally:
            self._claim.release()
        return took_s

    def _done(self) -> set[str]:
        """Return the objects that would come out as they did before."""
        images, slices = self._store.catalog.images(), self._store.catalog.slices()
        scans = self._objects.scans()
        done = set()
        for uid, row in self._objects.by_uid().items():
            before = scans.get(uid, {row.image_id: None})
            if row.verdict == WAITING:
                has_changed = any(series in images for series in before)
            elif row.verdict == REFUSED and row.image_id in images:
                # More of its slices may have come since.
                has_changed = before.get(row.image_id) != slices[row.image_id]
            else:
                has_changed = False
            if not has_changed:
                done.add(uid)
        return done

    def _try(self, item: Dataset) -> None:
        uid = str(item.SOPInstanceUID)
        try:
            self._look(item)
        except PacsError as error:
            # Whatever it was: where only this object makes the PACS fall silent, the others come first.
            self._later.record_failure(uid, str(error))
            if not isinstance(error, NotDeliveredError):
                raise
        else:
            self._later.record_success(uid)

    def _look(self, item: Dataset) -> None:
        found = PacsObject(
            sop_uid=str(item.SOPInstanceUID),
            series_uid=str(item.SeriesInstanceUID),
            study_uid=str(item.StudyInstanceUID),
            image_id="",
            reason="",
        )
        slices = self._store.catalog.slices()
        drawn_on: set[str] = set()
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            file = Path(scratch) / "object.dcm"
            self._pacs.fetch_instance(found.study_uid, found.series_uid, found.sop_uid, file)
            try:
                header = read_header(file)
                drawn_on = referenced_series(header)
                image_id = self._importer.image_of(header)
                found.image_id = image_id or next(iter(sorted(drawn_on)), "")
                if image_id is None:
                    found.verdict = WAITING
                elif found.sop_uid in self._ours(image_id):
                    found.verdict = OURS
                else:
                    _require_a_person(header)
                    self._keep(file, header, image_id)
                    found.verdict = KEPT
            except (LabelError, ScanError, *ODD) as error:
                found.verdict, found.reason = REFUSED, str(error)
                logger.warning("%s in the PACS is no label: %s", found.sop_uid, error)
        self._objects.save(found, {series: slices.get(series) for series in drawn_on})

    def _keep(self, file: Path, header: Dataset, image_id: str) -> None:
        about = {
            "author": author_of_object(header),
            "client_id": str(header.get("Manufacturer") or PACS),
            "series_instance_uid": str(header.SeriesInstanceUID),
        }
        self._importer.import_object(file, header, image_id, about, source=PACS)

    def _ours(self, image_id: str) -> set[str]:
        """Return the UIDs of what was sent from here; they follow from the versions."""
        versions = self._store.history.of_every_tag(image_id)
        made = {
            provenance_of(version, kind, image_id).sop_instance_uid
            for version in versions
            for kind in KINDS
        }
        return made | {str(v.info.get("sop_instance_uid", "")) for v in versions}


def _require_a_person(header: Dataset) -> None:
    """Raise LabelError where all that an object of this program's holds was drawn by a model.

    That is SegmentAlgorithmType (0062,0008) or ROIGenerationAlgorithm (3006,0036), as `ObjectAbout` gives them.
    """
    if header.get("Manufacturer") != MANUFACTURER:
        return
    segments = [
        one.get("SegmentAlgorithmType") for one in sequence_items(header, "SegmentSequence")
    ]
    rois = [
        one.get("ROIGenerationAlgorithm")
        for one in sequence_items(header, "StructureSetROISequence")
    ]
    if {*segments, *rois} == {"AUTOMATIC"}:
        raise LabelError(
            f"{header.SOPInstanceUID}: a model's contours that nobody has looked at; open them, correct them, "
            "and store them under a person's name"
        )
