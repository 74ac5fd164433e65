"""A DICOM SEG or RTSTRUCT becomes a label of the CT that it was drawn on, whoever brings it."""

import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.valuerep import DA, TM

from lib.datastores.dicomweb import DicomWebStore
from lib.dicom.object_attributes import referenced_series, sequence_items
from lib.dicom.objects import MODALITIES, read_object
from lib.dicom.structures import StructureSet, label_from_structures, match_organs
from lib.errors import DatastoreError, LabelError, ScanError
from lib.imaging.dicom_series import PARSING_ERRORS, read_headers
from lib.imaging.geometry import Grid
from lib.imaging.scans import write_label
from lib.jobs.keyed_lock import KeyedLock
from lib.labels.history import FINAL
from lib.storage.atomic_files import SCRATCH
from lib.storage.tables import LabelVersion

SOP_UID = "sop_instance_uid"
"""In a version's `info`: the object that it was made of."""
CLIENT = "client"
PACS = "pacs"
"""Sources of labels, as in `LabelVersion`."""

_WHEN = (("ContentDate", "ContentTime"), ("StructureSetDate", "StructureSetTime"),
         ("SeriesDate", "SeriesTime"))  # fmt: skip
_WHO = ("ContentCreatorName", "OperatorsName", "ReviewerName")


class DicomImporter:
    """Makes label versions of DICOM objects.

    Args:
        store: Where the scans and labels are.
    """

    def __init__(self, store: DicomWebStore) -> None:
        self._store = store
        self._turns = KeyedLock()

    def import_submitted(self, file: Path, *, author: str, client: str) -> LabelVersion | None:
        """Keep what somebody submitted as a final label, and return the version; None where it is for the PACS.

        That is where it is drawn on no scan of ours, or an RTSTRUCT with more in it than our organs: a label
        would keep less than was sent. What is in the PACS, `import_object` takes our organs from.

        Args:
            file: A DICOM object.
            author: Who sent it.
            client: The program that did.

        Raises:
            LabelError: If it is damaged, or names organs that this server does not contour.
            GeometryError: If it does not lie on the slices of its CT. What is refused is kept in quarantine.
            PacsError: If the CT is not at hand and the PACS does not answer.
            StorageFullError: If the disk is full.
        """
        header = read_header(file)
        image_id = self.image_of(header)
        if header.get("Modality") not in MODALITIES or image_id is None or self._has_more(header):
            return None
        info = {"author": author, "client_id": client}
        return self.import_object(file, header, image_id, info, source=CLIENT)

    def import_object(
        self, file: Path, header: Dataset, image_id: str, info: Mapping[str, Any], *, source: str
    ) -> LabelVersion:
        """Keep an object as a final label of an image, and return the version: one, though it came twice.

        What a person submits again after something else was submitted, or it was removed, is a version again.

        Raises:
            As `import_submitted`.
        """
        # An object comes twice at once when a viewer tries again: the second waits, and finds the first.
        with self._turns.of(str(header.SOPInstanceUID)):
            kept = self._kept(image_id, str(header.SOPInstanceUID), source)
            return kept or self._add(file, header, image_id, info, source)

    def _kept(self, image_id: str, sop_uid: str, source: str) -> LabelVersion | None:
        """Return the version that an object became before, if it is not to become one again."""
        if source == CLIENT:
            newest = self._store.history.newest(image_id, FINAL)
            versions = [] if newest is None else [newest]
        else:
            versions = self._store.history.history(image_id, FINAL)
        return next((v for v in versions if v.info.get(SOP_UID) == sop_uid), None)

    def _add(
        self, file: Path, header: Dataset, image_id: str, info: Mapping[str, Any], source: str
    ) -> LabelVersion:
        about = {**info, SOP_UID: str(header.SOPInstanceUID), "modality": header.Modality}
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            drawn = Path(scratch) / "label.nii.gz"
            try:
                headers, grid = read_headers(self._store.require_image(image_id), image_id=image_id)
                read = self._submitted if source == CLIENT else self._found
                structures, notes = read(file, headers, grid, image_id)
                label = label_from_structures(
                    structures, self._store.labels, grid, image_id, notes=notes
                )
            except (LabelError, ScanError) as error:
                where = {"image": image_id, "tag": FINAL, "user": info.get("author", "")}
                raise type(error)(
                    self._store.submissions.refuse(file, where, str(error))
                ) from error
            write_label(drawn, label)
            about["notes"] = notes
            return self._store.submissions.submit(
                image_id,
                FINAL,
                drawn,
                about,
                source=source,
                submitted_at=creation_time(header) if source == PACS else None,
            )

    def _has_more(self, header: Dataset) -> bool:
        drawn = {
            one.get("ReferencedROINumber")
            for one in sequence_items(header, "ROIContourSequence")
            if sequence_items(one, "ContourSequence")
        }
        names = {
            str(roi.get("ROIName", ""))
            for roi in sequence_items(header, "StructureSetROISequence")
            if roi.get("ROINumber") in drawn
        }
        return len(match_organs(names, self._store.labels)) < len(names)

    def _submitted(
        self, file: Path, headers: Sequence[FileDataset], grid: Grid, image_id: str
    ) -> tuple[StructureSet, list[str]]:
        """Return all structures of what a person submits: he is told if one is no organ of ours."""
        structures = read_object(file, headers, grid, image_id=image_id)
        return structures, list(structures.notes)

    def _found(
        self, file: Path, headers: Sequence[FileDataset], grid: Grid, image_id: str
    ) -> tuple[StructureSet, list[str]]:
        """Return our organs among the structures of an object in the PACS, and notes.

        A planning system's hold targets, the body and the couch beside the organs.

        Raises:
            LabelError: If there is no organ of ours with a voxel in it.
        """
        labels = self._store.labels
        structures = read_object(
            file, headers, grid, image_id=image_id, select=lambda names: match_organs(names, labels)
        )
        if not structures.masks:
            raise LabelError(
                f"{image_id}: none of the {len(structures.names)} structures in it "
                f"({', '.join(map(repr, structures.names[:20]))}) is drawn and an organ of this server's; it "
                f"contours {', '.join(labels)}"
            )
        ours = match_organs(structures.names, labels)
        others = [repr(name) for name in structures.names if name not in ours]
        passed_over = [f"no organs of this server's: {', '.join(others)}"] if others else []
        return structures, [*structures.notes, *passed_over]

    def image_of(self, header: Dataset) -> str | None:
        """Return the image that an object was drawn on, None where it is none of the store's.

        Raises:
            PacsError: If nobody looked at that image yet and the PACS does not answer.
        """
        for uid in sorted(referenced_series(header)):
            try:
                self._store.catalog.require(uid)
            except (DatastoreError, ScanError):
                continue
            return uid
        return None


def read_header(file: Path) -> Dataset:
    """Return all of a DICOM object but its pixels.

    Raises:
        LabelError: If it is none.
    """
    try:
        return pydicom.dcmread(file, stop_before_pixels=True)
    except PARSING_ERRORS as error:
        raise LabelError(f"what was sent is no DICOM object ({error}); export it again") from error


def creation_time(header: Dataset) -> datetime | None:
    """Return when an object says that it was made; None where it does not say.

    Without TimezoneOffsetFromUTC (0008,0201) it is this machine's time zone.
    """
    for date, time in _WHEN:
        if header.get(date):
            try:
                moment = datetime.combine(DA(header[date].value), TM(header.get(time) or "000000"))
                return moment.replace(tzinfo=_zone(header)).astimezone(timezone.utc)
            except PARSING_ERRORS:
                continue
    return None


def _zone(header: Dataset) -> timezone | None:
    offset = str(header.get("TimezoneOffsetFromUTC") or "")
    if not offset:
        return None
    sign = -1 if offset.startswith("-") else 1
    digits = offset.lstrip("+-")
    return timezone(sign * timedelta(hours=int(digits[:2]), minutes=int(digits[2:4])))


def author_of_object(header: Dataset) -> str:
    """Return who an object says that made it; empty where it does not say."""
    return next((str(header[name].value) for name in _WHO if header.get(name)), "")
