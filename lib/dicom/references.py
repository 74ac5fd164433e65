"""What a SEG or an RTSTRUCT says of the CT it belongs to, and what one of ours says of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.dataset import Dataset, FileDataset

from lib.errors import GeometryError

_PATIENT_AND_STUDY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
                      "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
                      "ReferringPhysicianName")  # fmt: skip
"""Attributes of type 1 and 2 of the modules Patient and General Study (PS3.3 C.7.1.1, C.7.2.1)."""

_MORE_OF_THE_STUDY = ("StudyDescription", "PatientAge", "PatientSize", "PatientWeight", "IssuerOfPatientID",
                      "PatientIdentityRemoved", "DeidentificationMethod")  # fmt: skip


def referenced_series(dataset: Dataset) -> set[str]:
    """Return the SeriesInstanceUIDs that a SEG or RTSTRUCT was drawn on; often one, sometimes none."""
    of_rtstruct = [
        series
        for frame in items(dataset, "ReferencedFrameOfReferenceSequence")
        for study in items(frame, "RTReferencedStudySequence")
        for series in items(study, "RTReferencedSeriesSequence")
    ]
    # An RTSTRUCT may list all that it refers to, as a SEG does, but what it was drawn on stands above.
    found = of_rtstruct or items(dataset, "ReferencedSeriesSequence")
    return {str(one.SeriesInstanceUID) for one in found if "SeriesInstanceUID" in one}


def items(dataset: Dataset, keyword: str) -> Sequence[Any]:
    """Return the items of a sequence, none where it is missing or empty."""
    return dataset.get(keyword) or ()


def require_same_scan(
    dataset: Dataset, frames: Mapping[str, str], headers: Sequence[FileDataset], image_id: str
) -> list[str]:
    """Return notes where `dataset` was drawn on the scan of `headers`.

    Args:
        dataset: A SEG or an RTSTRUCT.
        frames: The frame of reference of each of its parts, by what to call it; empty where it names none.
        headers: The CT's slices.
        image_id: For messages.

    Raises:
        GeometryError: If it was drawn on anything else, or does not say on what.
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
            f"{own_frame or 'none'}; its coordinates mean another place: export it with the CT it was drawn on"
        )
    if series:
        return []
    if not own_frame or not all(frames.values()):
        raise GeometryError(
            f"{image_id}: the {kind} names neither the series nor the frame of reference that it was drawn "
            "in; export it again"
        )
    return [f"the {kind} names no series; its frame of reference is the CT's"]


def patient_and_study(header: FileDataset) -> dict[str, Any]:
    """Return, by keyword, what an object in the CT's study repeats of it; empty where the CT lacks it."""
    found = {keyword: header.get(keyword) or "" for keyword in _PATIENT_AND_STUDY}
    if found["PatientSex"] not in ("M", "F", "O"):
        found["PatientSex"] = ""
    more = {keyword: header.get(keyword) for keyword in _MORE_OF_THE_STUDY}
    return {**found, **{keyword: value for keyword, value in more.items() if value}}


def frame_of_reference(header: FileDataset, image_id: str) -> str:
    """Return the CT's FrameOfReferenceUID.

    Raises:
        GeometryError: If it has none: then nothing else can be said to lie where it lies.
    """
    frame = str(header.get("FrameOfReferenceUID", "") or "")
    if not frame:
        raise GeometryError(
            f"{image_id}: the CT has no FrameOfReferenceUID, which a SEG or RTSTRUCT of it must name; export "
            "the CT again from where it was made"
        )
    return frame
