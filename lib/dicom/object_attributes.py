"""Attributes common to SEG and RTSTRUCT: provenance, organ codes, references to the CT; and saving."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import RE_VALID_UID, generate_uid
from pydicom.valuerep import DA, TM

from lib import __version__
from lib.errors import ConfigError, GeometryError, LabelError, ScanError, StorageFullError
from lib.imaging.dicom_files import read_dicom
from lib.organs.table import LATERALITY, ORGANS, Organ
from lib.storage.atomic_files import replacing
from lib.storage.storage_errors import is_disk_full

MANUFACTURER = "OrganNet Label"
SOFTWARE_VERSION = __version__
LONG_STRING = 64
"""Number of characters of a value of VR LO, and of a component group of VR PN (PS3.5 section 6.2)."""

Generation = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]

_FORBIDDEN_TEXT = re.compile(r"[\\^=\x00-\x1f\x7f]+")
"""DICOM's separators of values and of components of names, and control characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectProvenance:
    """Provenance attributes (UIDs, author, model, time) of an exported SEG or RTSTRUCT.

    Attributes:
        sop_instance_uid: SOPInstanceUID; use one derived from the content, so that an object that is sent twice
            is stored once.
        series_instance_uid: SeriesInstanceUID of the object's own series, in the CT's study.
        author: Person who drew or corrected the contours; empty if unknown.
        model: Name of the model that made the contours or their first version; None if there was none.
        model_version: Version of the model; empty if there is no model.
        is_automatic: Whether the contours are the model's, unchanged.
        description: SeriesDescription.
        created: Time of creation with a time zone; the object contains this machine's local time, as is usual.
        series_number: SeriesNumber; scanners use small numbers.
    """

    sop_instance_uid: str = field(default_factory=lambda: str(generate_uid()))
    series_instance_uid: str = field(default_factory=lambda: str(generate_uid()))
    author: str = ""
    model: str | None = None
    model_version: str = ""
    is_automatic: bool = False
    description: str = "OrganNet Label contours"
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    series_number: int = 9000

    def __post_init__(self) -> None:
        """Check the requirements of DICOM.

        Raises:
            ConfigError: If a UID is invalid, the number is not positive, `created` has no time zone, or
                `is_automatic` is set without a model.
        """
        for uid in (self.sop_instance_uid, self.series_instance_uid):
            if len(uid) > 64 or not re.fullmatch(RE_VALID_UID, uid):
                raise ConfigError(
                    f"{uid!r} is not a UID: at most 64 digits and dots expected (PS3.5 section 9.1)"
                )
        if self.series_number < 1:
            raise ConfigError(f"series number {self.series_number}: 1 or more expected")
        if self.created.tzinfo is None:
            raise ConfigError("created: a time with a time zone expected")
        if self.is_automatic and not self.model:
            raise ConfigError("is_automatic: the name of the model expected")

    @property
    def generation(self) -> Generation:
        """Value of SegmentAlgorithmType and ROIGenerationAlgorithm: by a person, by a model, or by both."""
        if not self.model:
            return "MANUAL"
        return "AUTOMATIC" if self.is_automatic else "SEMIAUTOMATIC"

    @property
    def person(self) -> str:
        """The author as a person's name (PN) with a single component, the family name."""
        return dicom_text(self.author)

    @property
    def date(self) -> str:
        """The date in DICOM's format (DA)."""
        return self.created.astimezone().strftime("%Y%m%d")

    @property
    def time(self) -> str:
        """The time of day in DICOM's format (TM)."""
        return self.created.astimezone().strftime("%H%M%S.%f")


def derived_uid(*parts: str) -> str:
    """Return a UID that depends on `parts` only."""
    return str(generate_uid(entropy_srcs=list(parts)))


def dicom_text(value: str) -> str:
    """Return `value` without DICOM's special characters, cut to 64 characters."""
    return _FORBIDDEN_TEXT.sub(" ", value).strip()[:LONG_STRING].strip()


ANATOMICAL_STRUCTURE = ("123037004", "Anatomical Structure")
"""Code of the segmentation property category (PS3.16 CID 7150)."""

_WHITE_D65 = (0.950456, 1.0, 1.088754)
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


def organ_of(name: str, image_id: str) -> Organ:
    """Return the organ called `name`.

    Raises:
        LabelError: If the organ table does not contain it.
    """
    if name not in ORGANS:
        raise LabelError(
            f"{image_id}: {name!r} has no code and no colour in lib/organs/table.py; it has {', '.join(ORGANS)}"
        )
    return ORGANS[name]


def code(value: str, meaning: str) -> Dataset:
    """Return a code sequence item with a SNOMED CT code (PS3.3 section 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def category_code() -> Dataset:
    """Return the property category of every organ."""
    return code(*ANATOMICAL_STRUCTURE)


def organ_code(organ: Organ) -> Dataset:
    """Return an organ's code with its side as SegmentedPropertyTypeModifierCodeSequence."""
    item = code(organ.snomed_code, organ.snomed_meaning)
    if organ.side is not None:
        item.SegmentedPropertyTypeModifierCodeSequence = [code(*LATERALITY[organ.side])]
    return item


def cielab(colour_rgb: tuple[int, int, int]) -> list[int]:
    """Return RecommendedDisplayCIELabValue of an sRGB colour (PS3.3 section C.10.7.1.1).

    The white point is that of sRGB, D65, as OHIF, 3D Slicer and DCMTK assume. The profile connection space of
    the standard has D50, with which these programs would show another colour.
    """
    linear = [_linear(c / 255) for c in colour_rgb]
    x, y, z = (
        _cube_root(sum(w * c for w, c in zip(row, linear, strict=True)) / white)
        for row, white in zip(_TO_XYZ, _WHITE_D65, strict=True)
    )
    lightness, a, b = 116 * y - 16, 500 * (x - y), 200 * (y - z)
    scaled = (lightness / 100, (a + 128) / 255, (b + 128) / 255)
    return [min(max(round(v * 65535), 0), 65535) for v in scaled]


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def _cube_root(value: float) -> float:
    return float(value ** (1 / 3)) if value > (6 / 29) ** 3 else value * 841 / 108 + 4 / 29


_REQUIRED_KEYWORDS = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
                      "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
                      "ReferringPhysicianName")  # fmt: skip
"""Attributes of type 1 and 2 of the modules Patient and General Study (PS3.3 C.7.1.1, C.7.2.1)."""

_DATES_AND_TIMES: Mapping[str, Callable[[str], Any]] = {
    "PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}  # fmt: skip

_OPTIONAL_KEYWORDS = ("StudyDescription", "PatientAge", "PatientSize", "PatientWeight", "IssuerOfPatientID",
                      "PatientIdentityRemoved", "DeidentificationMethod")  # fmt: skip


def referenced_series(dataset: Dataset) -> set[str]:
    """Return the SeriesInstanceUIDs that a SEG or RTSTRUCT was drawn on; often one, sometimes none."""
    rtstruct_series = [
        series
        for frame in sequence_items(dataset, "ReferencedFrameOfReferenceSequence")
        for study in sequence_items(frame, "RTReferencedStudySequence")
        for series in sequence_items(study, "RTReferencedSeriesSequence")
    ]
    # An RTSTRUCT may also list every reference, as a SEG does; its drawn series is in the sequences above.
    all_series = rtstruct_series or sequence_items(dataset, "ReferencedSeriesSequence")
    return {str(s.SeriesInstanceUID) for s in all_series if "SeriesInstanceUID" in s}


def referenced_frames(dataset: Dataset) -> set[str]:
    """Return the FrameOfReferenceUIDs that a SEG or RTSTRUCT refers to as a whole, apart from its ROIs.

    That of the Frame of Reference Module (PS3.3 C.7.4.1) counts where the sequence of references has none.
    """
    items = sequence_items(dataset, "ReferencedFrameOfReferenceSequence")
    frames = {str(item.get("FrameOfReferenceUID", "") or "") for item in items} - {""}
    return frames or {str(dataset.get("FrameOfReferenceUID", "") or "")} - {""}


def sequence_items(dataset: Dataset, keyword: str) -> Sequence[Any]:
    """Return the items of a sequence; none if it is missing or empty."""
    return dataset.get(keyword) or ()


def opened(path: Path, kind: str, image_id: str) -> FileDataset:
    """Return the content of a SEG or RTSTRUCT.

    Raises:
        LabelError: If the file is damaged, or exceeds the limits of `lib.imaging.dicom_files`.
    """
    try:
        return read_dicom(path, with_pixels=True)
    except ScanError as error:
        raise LabelError(f"{image_id}: the {kind} is damaged: {error}") from error


def require_same_scan(
    dataset: Dataset, frames: Mapping[str, str], headers: Sequence[FileDataset], image_id: str
) -> list[str]:
    """Check that `dataset` was drawn on the scan of `headers`, and return notes.

    Args:
        dataset: A SEG or an RTSTRUCT.
        frames: Name of a part for messages -> its frame of reference; empty if it has none.
        headers: Headers of the CT's slices.
        image_id: For messages.

    Raises:
        GeometryError: If it was drawn on another scan, or has no reference to a scan.
    """
    kind = dataset.Modality
    own_series = str(headers[0].SeriesInstanceUID)
    own_frame = str(headers[0].get("FrameOfReferenceUID", "") or "")
    series = referenced_series(dataset)
    if series and own_series not in series:
        raise GeometryError(
            f"{image_id}: the {kind} was drawn on series {', '.join(sorted(series))}, the CT is series "
            f"{own_series}; export the CT that it was drawn on"
        )
    foreign = [name for name, frame in frames.items() if frame and frame != own_frame]
    if foreign:
        raise GeometryError(
            f"{image_id}: {foreign[0]} lies in the frame of reference {frames[foreign[0]]}, the CT in "
            f"{own_frame or 'none'}; its coordinates refer to another scan: export it with its own CT"
        )
    if series:
        return []
    if not own_frame or not all(frames.values()):
        raise GeometryError(
            f"{image_id}: the {kind} names neither a series nor a frame of reference; "
            "export it again"
        )
    return [f"the {kind} names no series; it was accepted by its frame of reference"]


def patient_and_study(header: FileDataset) -> dict[str, Any]:
    """Return the attributes of patient and study that an object repeats; unusable values become empty."""
    values = {keyword: header.get(keyword) or "" for keyword in _REQUIRED_KEYWORDS}
    for keyword, kind in _DATES_AND_TIMES.items():
        try:
            kind(values[keyword])
        except ValueError:
            values[keyword] = ""
    if values["PatientSex"] not in ("M", "F", "O"):
        values["PatientSex"] = ""
    optional = {keyword: header.get(keyword) for keyword in _OPTIONAL_KEYWORDS}
    return {**values, **{keyword: value for keyword, value in optional.items() if value}}


def frame_of_reference(header: FileDataset, image_id: str) -> str:
    """Return the CT's FrameOfReferenceUID.

    Raises:
        GeometryError: If it has none: an object could not refer to its coordinates.
    """
    frame = str(header.get("FrameOfReferenceUID", "") or "")
    if not frame:
        raise GeometryError(
            f"{image_id}: the CT has no FrameOfReferenceUID, which a SEG or RTSTRUCT must name; export "
            "the CT again from its origin"
        )
    return frame


def save_object(path: Path, dataset: Dataset, image_id: str) -> None:
    """Write `dataset` as a DICOM file (PS3.10), atomically.

    Raises:
        StorageFullError: If the disk is full.
    """
    try:
        with replacing(path) as beside:
            dataset.save_as(beside, enforce_file_format=True)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFullError(
                f"{image_id}: {path.name} could not be written: the disk is full; existing files are "
                "untouched"
            ) from error
        raise
