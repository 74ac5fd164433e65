"""RTSTRUCT (PS3.3 A.19, C.8.8.5, C.8.8.6): reading ROIs as masks on a CT, and writing a label volume.

`rtstruct_rois` attributes contours to ROIs, `contour_masks` decides which voxels they mark.
`polygons.mask_outlines` draws the contours of a mask, along the voxels' edges and with holes as keyholes.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from lib.dicom.contour_masks import mask_from_contours
from lib.dicom.contours import Roi
from lib.dicom.object_attributes import (
    MANUFACTURER,
    SOFTWARE_VERSION,
    ObjectProvenance,
    category_code,
    cielab,
    dicom_text,
    frame_of_reference,
    opened,
    organ_code,
    patient_and_study,
    require_same_scan,
    save_object,
)
from lib.dicom.polygons import mask_outlines
from lib.dicom.rtstruct_rois import (
    chosen_rois,
    contour_items,
    note_other_slice,
    points_lps,
    rois_of,
    slice_position_vox,
)
from lib.dicom.structures import StructureFilter, StructureSet, label_on_slices
from lib.errors import LabelError, OrganNetError
from lib.imaging.dicom_files import PARSING_ERRORS
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import FloatArray, MaskArray
from lib.imaging.volumes import LabelVolume
from lib.organs.table import Organ

_log = logging.getLogger(__name__)


def read_rtstruct(
    path: Path,
    headers: Sequence[FileDataset],
    grid: Grid,
    *,
    image_id: str,
    select: StructureFilter = tuple,
) -> StructureSet:
    """Return the ROIs of an RTSTRUCT as masks on `grid`.

    Args:
        path: The RTSTRUCT's file.
        headers: Headers of the CT's slices, as `lib.imaging.dicom_series.read_headers` returns them.
        grid: The CT's grid, from the same function.
        image_id: For messages.
        select: Given the names of all ROIs with contours, returns those to read; the others are ignored.

    Raises:
        LabelError: If the file is damaged or not an RTSTRUCT, two selected ROIs have one name, or it is unknown
            to which ROI contours belong.
        GeometryError: If it was drawn on another series or in another frame of reference, or a selected
            contour does not lie in a slice of the scan.
    """
    try:
        dataset = opened(path, "RTSTRUCT", image_id)
        rois, changes = rois_of(dataset, image_id)
        items, more_changes = contour_items(dataset, rois, image_id)
        changes += more_changes
        chosen, more_changes = chosen_rois(rois, items, select, image_id)
        changes += more_changes
        frames = {repr(roi.name): roi.frame for roi in chosen}
        changes += require_same_scan(dataset, frames, headers, image_id)
        positions = {str(h.SOPInstanceUID): slice_position_vox(h, grid) for h in headers}
        masks = {
            roi.name: _mask(items[roi.number], roi, positions, grid, image_id) for roi in chosen
        }
    except OrganNetError:
        raise
    except PARSING_ERRORS as error:
        raise LabelError(
            f"{image_id}: the RTSTRUCT is damaged ({error}); export it again"
        ) from error
    for roi in chosen:
        changes += roi.doubts
        changes += [f"{roi.name}: {count} {what}" for what, count in sorted(roi.notes.items())]
        if not masks[roi.name].any():
            changes.append(f"{roi.name}: no closed contour marks a voxel")
    for change in changes:
        _log.info("%s: %s", image_id, change)
    return StructureSet(
        tuple(roi.name for roi in rois),
        {name: mask for name, mask in masks.items() if mask.any()},
        tuple(changes),
    )


def _mask(
    items: Sequence[Dataset],
    roi: Roi,
    positions: Mapping[str, float],
    grid: Grid,
    image_id: str,
) -> MaskArray:
    """Return the voxels that a ROI marks; `positions` are those of the CT's slices, by SOPInstanceUID."""
    contours = []
    for item in items:
        points = points_lps(item, roi, image_id)
        note_other_slice(item, points, roi, positions, grid)
        contours.append((str(item.get("ContourGeometricType", "") or "unknown"), points))
    return mask_from_contours(contours, roi, grid, image_id)


RT_STRUCTURE_SET = UID("1.2.840.10008.5.1.4.1.1.481.3")
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management (retired): the class in RT Referenced Study Sequence by convention."""

DECIMALS = 4
"""Decimals of a coordinate in mm, within the 16 characters of a decimal string (PS3.5 section 6.2)."""


def write_rtstruct(
    path: Path,
    label: LabelVolume,
    headers: Sequence[FileDataset],
    about: ObjectProvenance,
    *,
    image_id: str = "label",
) -> tuple[str, ...]:
    """Write the organs of `label` that have a voxel as ROIs, and return notes.

    Arguments and errors are those of `lib.dicom.objects.write_object`.
    """
    slices, grid, array, organs = label_on_slices(label, headers, image_id)
    dataset = _dataset(path, slices, about, image_id)
    for number, (organ, value) in enumerate(organs, start=1):
        roi = _roi(number, organ, about)
        roi.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(_contours(number, organ, array == value, slices, grid))
        dataset.RTROIObservationsSequence.append(_observation(number, organ, about))
    save_object(path, dataset, image_id)
    return ()


def _dataset(
    path: Path, slices: Sequence[FileDataset], about: ObjectProvenance, image_id: str
) -> FileDataset:
    """Return the RTSTRUCT without its ROIs."""
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
        "SeriesDescription": dicom_text(about.description),
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
        "StructureSetName": dicom_text(about.description),
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
        roi.ROIGenerationDescription = dicom_text(f"{about.model} {about.model_version}")
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
    for contour_number, (z, points) in enumerate(_outlines_lps(mask, grid), start=1):
        contour = Dataset()
        contour.ContourImageSequence = [_image(slices[z])]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(points)
        contour.ContourNumber = contour_number
        contour.add(_decimals("ContourData", points))
        entry.ContourSequence.append(contour)
    return entry


def _decimals(keyword: str, values: FloatArray) -> DataElement:
    """Return an element of decimal strings, given as one text: pydicom would create an object for each."""
    joined = "\\".join(f"{v:.{DECIMALS}f}" for v in values.ravel())
    return DataElement(keyword, "DS", joined, already_converted=True)


def _outlines_lps(mask: MaskArray, grid: Grid) -> Iterator[tuple[int, FloatArray]]:
    """Yield slice and points `(N, 3)`, in LPS mm, of each contour of `mask` `(X, Y, Z)`."""
    affine = ras_to_lps(grid.affine_ras)
    marked = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(m[0], m[-1] + 1) for m in marked)
    x, y, first = (int(m[0]) for m in marked)
    for z, plane in enumerate(mask[box].transpose(2, 0, 1), start=first):
        offset = affine[:3, 3] + affine[:3, :3] @ np.array([x, y, z])
        for corners in mask_outlines(plane):
            yield z, np.asarray(corners @ affine[:3, :2].T + offset)
