"""Labels as DICOM SEG and RTSTRUCT: provenance of exported objects, and import of objects as labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileDataset
from pydicom.valuerep import DA, TM

from lib.datastores.local import FolderStore
from lib.dicom.object_attributes import (
    ObjectProvenance,
    derived_uid,
    referenced_series,
    sequence_items,
)
from lib.dicom.objects import MODALITIES, Kind, read_object
from lib.dicom.rtstruct_rois import roi_names
from lib.dicom.structures import StructureSet, label_from_structures, match_organs
from lib.errors import LabelError, ScanError
from lib.imaging.dicom_files import PARSING_ERRORS, read_dicom
from lib.imaging.dicom_series import read_headers
from lib.imaging.geometry import Grid
from lib.imaging.scans import write_label
from lib.jobs.keyed_lock import KeyedLock
from lib.labels.history import CLIENT, FINAL, PACS
from lib.organs.changes import renamed
from lib.storage.leftovers import scratch_folder
from lib.storage.tables import LabelVersion

MODEL = "OrganNet2.5D"
"""Algorithm name in objects whose contours are from a model."""
SOP_UID = "sop_instance_uid"
"""Key in a version's `info`: SOPInstanceUID of the object that it was made from."""

_TIME_ATTRIBUTES = (("ContentDate", "ContentTime"), ("StructureSetDate", "StructureSetTime"),
         ("SeriesDate", "SeriesTime"))  # fmt: skip
_AUTHOR_ATTRIBUTES = ("ContentCreatorName", "OperatorsName", "ReviewerName")


def provenance_of(version: LabelVersion, kind: Kind, series_uid: str) -> ObjectProvenance:
    """Return the provenance attributes of a label version as a DICOM object; equal versions get equal UIDs.

    Args:
        version: The label version.
        kind: SEG or RTSTRUCT.
        series_uid: SeriesInstanceUID of the CT.
    """
    identity = (series_uid, kind, version.tag, str(version.number), version.digest)
    has_model = bool(version.model_version)
    return ObjectProvenance(
        sop_instance_uid=derived_uid("instance", *identity),
        series_instance_uid=derived_uid("series", *identity),
        author=version.author,
        model=MODEL if has_model else None,
        model_version=version.model_version or "",
        is_automatic=has_model and version.source == "infer",
        description=f"OrganNet Label {version.tag} {version.number}",
        created=version.submitted_at,
    )


@dataclass(frozen=True)
class DicomImporter:
    """Makes label versions from DICOM objects."""

    store: FolderStore
    image_of_series: Callable[[str], str | None]
    """SeriesInstanceUID -> image of the store; None if it has no such image."""
    _locks: KeyedLock = field(default_factory=KeyedLock, init=False)

    def import_submitted(self, file: Path, *, author: str, client: str) -> LabelVersion | None:
        """Submit an object as a final label, and return the version; None if it must go to the PACS instead.

        An object must go to the PACS if its scan is not in this store, or if it is an RTSTRUCT with structures
        that are not this server's organs: a label would lose them. (From an object that is in the PACS already,
        `import_object` takes only this server's organs.)

        Args:
            file: A DICOM object.
            author: The user who sent it.
            client: The program that sent it.

        Raises:
            LabelError: If it is damaged, or names organs that this server does not contour.
            GeometryError: If it does not lie on the slices of its CT. Refused objects are kept in quarantine.
            PacsError: If the CT has to be fetched and the PACS does not answer.
            StorageFullError: If the disk is full.
        """
        header = read_header(file)
        image_id = self.image_of(header)
        is_contours = header.get("Modality") in MODALITIES
        if not is_contours or image_id is None or self._has_other_structures(header):
            return None
        info = {"author": author, "client_id": client}
        return self.import_object(file, header, image_id, info, source=CLIENT)

    def import_object(
        self, file: Path, header: Dataset, image_id: str, info: Mapping[str, Any], *, source: str
    ) -> LabelVersion:
        """Submit an object as a final label of an image; return its version, also if it was submitted before.

        An object that a user submits again, after another label was submitted or the label was removed, makes
        another version.

        Raises:
            As `import_submitted`.
        """
        # A viewer that retries sends an object twice at once: the second request waits for the first one.
        with self._locks.of(str(header.SOPInstanceUID)):
            version = self._existing_version(image_id, str(header.SOPInstanceUID), source)
            return version or self._submit(file, header, image_id, info, source)

    def _existing_version(self, image_id: str, sop_uid: str, source: str) -> LabelVersion | None:
        """Return the version that was made from an object before; None if a new version is needed."""
        if source == CLIENT:
            newest = self.store.history.newest(image_id, FINAL)
            versions = [] if newest is None else [newest]
        else:
            versions = self.store.history.history(image_id, FINAL)
        return next((v for v in versions if v.info.get(SOP_UID) == sop_uid), None)

    def _submit(
        self, file: Path, header: Dataset, image_id: str, info: Mapping[str, Any], source: str
    ) -> LabelVersion:
        about = {**info, SOP_UID: str(header.SOPInstanceUID), "modality": header.Modality}
        with scratch_folder() as scratch:
            label_file = Path(scratch) / "label.nii.gz"
            try:
                headers, grid = read_headers(self.store.require_image(image_id), image_id=image_id)
                read_structures = self._all_structures if source == CLIENT else self._known_organs
                structures, notes = read_structures(file, headers, grid, image_id)
                label = label_from_structures(
                    structures, self.store.labels, grid, image_id, notes=notes
                )
            except (LabelError, ScanError) as error:
                context = {"image": image_id, "tag": FINAL, "user": info.get("author", "")}
                raise type(error)(
                    self.store.submissions.refuse(file, context, str(error))
                ) from error
            write_label(label_file, label)
            return self.store.submissions.submit(
                image_id,
                FINAL,
                label_file,
                about,
                source=source,
                submitted_at=creation_time(header) if source == PACS else None,
                changes=[*notes, *renamed(match_organs(structures.masks, self.store.labels))],
            )

    def _has_other_structures(self, header: Dataset) -> bool:
        contoured = {
            roi.get("ReferencedROINumber")
            for roi in sequence_items(header, "ROIContourSequence")
            if sequence_items(roi, "ContourSequence")
        }
        names = {name for number, name in roi_names(header) if number in contoured}
        return len(match_organs(names, self.store.labels)) < len(names)

    def _all_structures(
        self, file: Path, headers: Sequence[FileDataset], grid: Grid, image_id: str
    ) -> tuple[StructureSet, list[str]]:
        """Return all structures of an object and notes; a submission with an unknown organ gets an error."""
        structures = read_object(file, headers, grid, image_id=image_id)
        return structures, list(structures.changes)

    def _known_organs(
        self, file: Path, headers: Sequence[FileDataset], grid: Grid, image_id: str
    ) -> tuple[StructureSet, list[str]]:
        """Return this server's organs among the structures of an object in the PACS, and notes.

        Objects of planning systems also hold targets, the body and the couch.

        Raises:
            LabelError: If none of this server's organs has a voxel in it.
        """
        labels = self.store.labels
        structures = read_object(
            file, headers, grid, image_id=image_id, select=lambda names: match_organs(names, labels)
        )
        if not structures.masks:
            raise LabelError(
                f"{image_id}: none of the {len(structures.names)} structures in it "
                f"({', '.join(map(repr, structures.names[:20]))}) is a contoured organ of this server, which "
                f"contours {', '.join(labels)}"
            )
        recognised = match_organs(structures.names, labels)
        others = [repr(name) for name in structures.names if name not in recognised]
        ignored = [f"ignored, no organs of this server: {', '.join(others)}"] if others else []
        return structures, [*structures.changes, *ignored]

    def image_of(self, header: Dataset) -> str | None:
        """Return the image that an object was drawn on; None if the store does not have it.

        Raises:
            PacsError: If that image was not checked yet and the PACS does not answer.
        """
        images = map(self.image_of_series, sorted(referenced_series(header)))
        return next((image_id for image_id in images if image_id is not None), None)


def read_header(file: Path) -> Dataset:
    """Return the attributes of a DICOM object without its pixels.

    Raises:
        LabelError: If the file is not a DICOM object.
    """
    try:
        return read_dicom(file)
    except PARSING_ERRORS as error:
        raise LabelError(f"the file is no DICOM object ({error}); export it again") from error


def creation_time(header: Dataset) -> datetime | None:
    """Return the creation time of an object; None if it has none.

    Without TimezoneOffsetFromUTC (0008,0201) the time zone of this machine is assumed.
    """
    for date, time in _TIME_ATTRIBUTES:
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
    """Return the author of an object; empty if no author is recorded in it."""
    return next((str(header[name].value) for name in _AUTHOR_ATTRIBUTES if header.get(name)), "")
