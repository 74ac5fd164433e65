"""Writing a label volume as an RTSTRUCT (PS3.3 A.19): closed contours on the CT's own slices.

`outlines` says how a slice's contours run: along the voxels' edges, holes as keyholes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from lib.dicom.about import MANUFACTURER, SOFTWARE_VERSION, ObjectProvenance, text
from lib.dicom.codes import category_code, cielab, organ_code, organ_of
from lib.dicom.files import save
from lib.dicom.outlines import outlines
from lib.dicom.references import frame_of_reference, patient_and_study
from lib.dicom.structures import present
from lib.imaging.dicom_series import arranged
from lib.imaging.geometry import Grid, ras_to_lps, turned_onto
from lib.imaging.quantities import FloatArray, MaskArray
from lib.imaging.volumes import LabelVolume
from lib.organs.table import Organ

RT_STRUCTURE_SET = UID("1.2.840.10008.5.1.4.1.1.481.3")
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, retired: what RT Referenced Study Sequence has always named."""

DECIMALS = 4
"""Of a coordinate in mm; with them it stays below the 16 characters of a decimal string (PS3.5 section 6.2)."""


def write_rtstruct(
    path: Path,
    label: LabelVolume,
    headers: Sequence[FileDataset],
    about: ObjectProvenance,
    *,
    image_id: str = "label",
) -> tuple[str, ...]:
    """Write the organs of `label` that have a voxel as ROIs, and return notes.

    Args:
        path: The file; replaced in one step.
        label: On the CT's voxels; its axes may run another way.
        headers: The CT's slices, as `lib.imaging.dicom_series.read_headers` returns them.
        about: The object's ids, author and time.
        image_id: For messages.

    Raises:
        LabelError: If no organ has a voxel, or a voxel's value has no name.
        GeometryError: If the label does not lie on the CT's voxels, or the CT names no frame of reference.
        StorageFullError: If the disk is full.
    """
    slices, grid = arranged(headers, image_id=image_id)
    array = turned_onto(label.array, label.grid, grid, image_id=image_id)
    organs = [(organ_of(name, image_id), v) for name, v in present(label, image_id).items()]
    dataset = _dataset(path, slices, about, image_id)
    for number, (organ, value) in enumerate(organs, start=1):
        roi = _roi(number, organ, about)
        roi.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(_contours(number, organ, array == value, slices, grid))
        dataset.RTROIObservationsSequence.append(_observation(number, organ, about))
    save(path, dataset, image_id)
    return ()


def _dataset(
    path: Path, slices: Sequence[FileDataset], about: ObjectProvenance, image_id: str
) -> FileDataset:
    """Return everything but the ROIs."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RT_STRUCTURE_SET
    meta.MediaStorageSOPInstanceUID = UID(about.sop_instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in patient_and_study(slices[0]).items():
        setattr(dataset, keyword, value)
    frame = frame_of_reference(slices[0], image_id)
    values = {
        "SOPClassUID": RT_STRUCTURE_SET,
        "SOPInstanceUID": about.sop_instance_uid,
        "InstanceCreationDate": about.date,
        "InstanceCreationTime": about.time,
        "Modality": "RTSTRUCT",
        "SeriesInstanceUID": about.series_instance_uid,
        "SeriesNumber": about.series_number,
        "SeriesDescription": text(about.description),
        "SeriesDate": about.date,
        "SeriesTime": about.time,
        "OperatorsName": about.person,
        "Manufacturer": MANUFACTURER,
        "ManufacturerModelName": MANUFACTURER,
        "SoftwareVersions": SOFTWARE_VERSION,
        "FrameOfReferenceUID": frame,
        "PositionReferenceIndicator": slices[0].get("PositionReferenceIndicator") or "",
        "InstanceNumber": 1,
        "StructureSetLabel": "ORGANS AT RISK",
        "StructureSetName": text(about.description),
        "StructureSetDate": about.date,
        "StructureSetTime": about.time,
        "ReferencedFrameOfReferenceSequence": [_referenced_frame(slices, frame)],
        "StructureSetROISequence": [],
        "ROIContourSequence": [],
        "RTROIObservationsSequence": [],
        "ApprovalStatus": "UNAPPROVED",
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _referenced_frame(slices: Sequence[FileDataset], frame_uid: str) -> Dataset:
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = slices[0].SeriesInstanceUID
    series.ContourImageSequence = [_image(header) for header in slices]
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = slices[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = frame_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(header: FileDataset) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID = header.SOPClassUID
    image.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return image


def _roi(number: int, organ: Organ, about: ObjectProvenance) -> Dataset:
    roi = Dataset()
    roi.ROINumber, roi.ROIName = number, organ.name
    roi.ROIGenerationAlgorithm = about.generation
    if about.model:
        roi.ROIGenerationDescription = text(f"{about.model} {about.model_version}")
    return roi


def _observation(number: int, organ: Organ, about: ObjectProvenance) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.ROIObservationLabel = organ.name
    observation.SegmentedPropertyCategoryCodeSequence = [category_code()]
    observation.RTROIIdentificationCodeSequence = [organ_code(organ)]
    observation.RTROIInterpretedType = "ORGAN"
    observation.ROIInterpreter = about.person
    return observation


def _contours(
    number: int, organ: Organ, mask: MaskArray, slices: Sequence[FileDataset], grid: Grid
) -> Dataset:
    entry = Dataset()
    entry.ReferencedROINumber = number
    entry.ROIDisplayColor = list(organ.colour_rgb)
    entry.RecommendedDisplayCIELabValue = cielab(organ.colour_rgb)
    entry.ContourSequence = []
    for contour_number, (z, points) in enumerate(_points_lps(mask, grid), start=1):
        contour = Dataset()
        contour.ContourImageSequence = [_image(slices[z])]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(points)
        contour.ContourNumber = contour_number
        contour.add(_decimals("ContourData", points))
        entry.ContourSequence.append(contour)
    return entry


def _decimals(keyword: str, values: FloatArray) -> DataElement:
    """Return an element of decimal strings, as one text: pydicom makes an object of each, which takes long."""
    joined = "\\".join(f"{v:.{DECIMALS}f}" for v in values.ravel())
    return DataElement(keyword, "DS", joined, already_converted=True)


def _points_lps(mask: MaskArray, grid: Grid) -> Iterator[tuple[int, FloatArray]]:
    """Yield slice and points `(N, 3)`, in LPS mm, of each contour of `mask` `(X, Y, Z)`."""
    affine = ras_to_lps(grid.affine_ras)
    marked = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(m[0], m[-1] + 1) for m in marked)
    x, y, first = (int(m[0]) for m in marked)
    for z, plane in enumerate(mask[box].transpose(2, 0, 1), start=first):
        offset = affine[:3, 3] + affine[:3, :3] @ np.array([x, y, z])
        for corners in outlines(plane):
            yield z, np.asarray(corners @ affine[:3, :2].T + offset)
