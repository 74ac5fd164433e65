"""A DICOM SEG or RTSTRUCT becomes a label of the CT that it was drawn on, whoever brings it."""

import tempfile
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM

from lib.datastores.dicomweb import DicomWebStore
from lib.datastores.local import FINAL
from lib.dicom.objects import MODALITIES, read_object
from lib.dicom.references import referenced_series
from lib.dicom.series import PARSING_ERRORS, read_headers
from lib.dicom.structures import label_from
from lib.errors import DatastoreError, LabelError, ScanError
from lib.files import SCRATCH
from lib.scans import write_label
from lib.state.tables import LabelVersion

SOP_UID = "sop_instance_uid"
"""In a version's `info`: the object that it was made of."""
CLIENT = "client"
PACS = "pacs"
"""Sources of labels, as in `LabelVersion`."""

_WHEN = (("ContentDate", "ContentTime"), ("StructureSetDate", "StructureSetTime"),
         ("SeriesDate", "SeriesTime"))  # fmt: skip
_WHO = ("ContentCreatorName", "OperatorsName", "ReviewerName")


class Receiver:
    """Makes label versions of DICOM objects.

    Args:
        store: Where the scans and labels are.
    """

    def __init__(self, store: DicomWebStore) -> None:
        self._store = store

    def take(self, file: Path, *, author: str, client: str) -> LabelVersion | None:
        """Keep what somebody submitted as a final label, and return the version; None where it is none of ours.

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
        if header.get("Modality") not in MODALITIES or image_id is None:
            return None
        info = {"author": author, "client_id": client}
        return self.keep(file, header, image_id, info, source=CLIENT)

    def keep(
        self, file: Path, header: Dataset, image_id: str, info: Mapping[str, Any], *, source: str
    ) -> LabelVersion:
        """Keep an object as a final label of an image, and return the version: one, though it came twice.

        Raises:
            As `take`.
        """
        sop_uid = str(header.SOPInstanceUID)
        for version in self._store.history.history(image_id, FINAL):
            if version.info.get(SOP_UID) == sop_uid:
                return version
        about = {**info, SOP_UID: sop_uid, "modality": header.Modality}
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            drawn = Path(scratch) / "label.nii.gz"
            try:
                headers, grid = read_headers(self._store.require_image(image_id), image_id=image_id)
                structures = read_object(file, headers, grid, image_id=image_id)
                notes: list[str] = []
                label = label_from(structures, self._store.labels, grid, image_id, notes=notes)
            except (LabelError, ScanError) as error:
                where = {"image": image_id, "tag": FINAL, "user": info.get("author", "")}
                raise type(error)(self._store.refuse(file, where, str(error))) from error
            write_label(drawn, label)
            about["notes"] = [*structures.notes, *notes]
            return self._store.keep_label(
                image_id,
                drawn,
                FINAL,
                about,
                source=source,
                submitted_at=drawn_at(header) if source == PACS else None,
            )

    def image_of(self, header: Dataset) -> str | None:
        """Return the image that an object was drawn on, None where it is none of the store's."""
        for uid in sorted(referenced_series(header)):
            try:
                self._store.place(uid)
            except DatastoreError:
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


def drawn_at(header: Dataset) -> datetime | None:
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


def drawn_by(header: Dataset) -> str:
    """Return who an object says that made it; empty where it does not say."""
    return next((str(header[name].value) for name in _WHO if header.get(name)), "")
