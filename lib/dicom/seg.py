"""DICOM SEG (PS3.3 A.51, C.8.20): organs as segments, written with highdicom, read from any writer.

Segments are identified by their label, never by number or position. Frames are identified by their position in
the patient, never by their order; `seg_frames` maps them to the CT's voxels.
"""

import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian

from lib.dicom.object_attributes import (
    MANUFACTURER,
    SOFTWARE_VERSION,
    ObjectProvenance,
    category_code,
    cielab,
    derived_uid,
    dicom_text,
    frame_of_reference,
    opened,
    organ_code,
    patient_and_study,
    require_same_scan,
    save_object,
)
from lib.dicom.seg_frames import drawn_segments, frames_of, mark_frame
from lib.dicom.seg_pixels import FramePixels
from lib.dicom.seg_segments import chosen_segments, segments_of
from lib.dicom.structures import StructureFilter, StructureSet, label_on_slices
from lib.errors import LabelError, OrganNetError
from lib.imaging.dicom_files import PARSING_ERRORS
from lib.imaging.geometry import Grid
from lib.imaging.volumes import LabelVolume
from lib.organs.table import Organ

_log = logging.getLogger(__name__)

_SLICE_KEYWORDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns",
          "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")  # fmt: skip

_ARTIFICIAL_INTELLIGENCE = hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")
"""Code of the algorithm family (PS3.16 CID 7162)."""

_DAMAGE = (*PARSING_ERRORS, IndexError, RuntimeError, zlib.error)


class _Segmentation(hd.seg.Segmentation):
    """highdicom's Segmentation, packed without extra memory; pydicom's packing takes 9 bytes per voxel."""

    def _encode_pixels_native(self, planes: "np.ndarray[Any, Any]") -> bytes:
        return np.packbits(planes, bitorder="little").tobytes()


def write_seg(
    path: Path,
    label: LabelVolume,
    headers: Sequence[FileDataset],
    about: ObjectProvenance,
    *,
    image_id: str = "label",
) -> tuple[str, ...]:
    """Write the organs of `label` that have a voxel as a binary SEG, a segment each, and return notes.

    Every segment has a frame for every slice: viewers that count frames instead of reading their positions
    would shift the overlay otherwise. This takes 32 KiB per organ and slice of 512 x 512, and sixteen times as
    much memory during packing: 34 MiB and 540 MiB for nine organs on 120 slices.

    Arguments and errors are those of `lib.dicom.objects.write_object`.
    """
    slices, grid, array, organs = label_on_slices(label, headers, image_id)
    number_of = np.zeros(256, np.uint8)
    number_of[[value for _, value in organs]] = np.arange(1, len(organs) + 1)
    segments = [
        _segment(number, organ, slices[0], about)
        for number, (organ, _) in enumerate(organs, start=1)
    ]
    dataset = _Segmentation(
        source_images=_sources(slices, grid, image_id),
        pixel_array=np.ascontiguousarray(number_of[array].transpose(2, 1, 0)),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=about.series_instance_uid,
        series_number=about.series_number,
        sop_instance_uid=about.sop_instance_uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=SOFTWARE_VERSION,
        device_serial_number=SOFTWARE_VERSION,
        content_description=dicom_text(about.description),
        content_label="ORGANS",
        series_description=dicom_text(about.description),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
    )
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = slices[0].get("PatientName") or ""
    dataset.ContentCreatorName = about.person
    for part in ("Content", "InstanceCreation", "Series"):
        setattr(dataset, f"{part}Date", about.date)
        setattr(dataset, f"{part}Time", about.time)
    save_object(path, dataset, image_id)
    return ()


def _sources(slices: Sequence[FileDataset], grid: Grid, image_id: str) -> list[Dataset]:
    """Return the attributes of the slices that highdicom needs; others could make it fail."""
    common = {
        **patient_and_study(slices[0]),
        "PatientName": "",  # highdicom warns about names of one component; `write_seg` sets it
        "FrameOfReferenceUID": frame_of_reference(slices[0], image_id),
        "PositionReferenceIndicator": slices[0].get("PositionReferenceIndicator") or "",
        # A label has no slice thickness of its own: its voxels reach from slice to slice.
        "SliceThickness": f"{grid.spacing_mm[2]:.10g}",
        "SpacingBetweenSlices": f"{grid.spacing_mm[2]:.10g}",
    }
    sources = []
    for header in slices:
        source = Dataset()
        for keyword, value in common.items():
            setattr(source, keyword, value)
        for keyword in _SLICE_KEYWORDS:
            setattr(source, keyword, header[keyword].value)
        sources.append(source)
    return sources


def _segment(
    number: int, organ: Organ, header: FileDataset, about: ObjectProvenance
) -> hd.seg.SegmentDescription:
    algorithm = None
    if about.model:
        algorithm = hd.AlgorithmIdentificationSequence(
            name=dicom_text(about.model),
            family=_ARTIFICIAL_INTELLIGENCE,
            version=dicom_text(about.model_version) or "unknown",
        )
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=organ.name,
        segmented_property_category=hd.sr.CodedConcept.from_dataset(category_code()),
        segmented_property_type=hd.sr.CodedConcept.from_dataset(organ_code(organ)),
        algorithm_type=about.generation,
        algorithm_identification=algorithm,
        tracking_id=organ.name,
        # Identifies an organ of a CT, independent of author and version.
        tracking_uid=derived_uid(str(header.SeriesInstanceUID), organ.name),
    )
    segment.RecommendedDisplayCIELabValue = cielab(organ.colour_rgb)
    return segment


def read_seg(
    path: Path,
    headers: Sequence[FileDataset],
    grid: Grid,
    *,
    image_id: str,
    select: StructureFilter = tuple,
) -> StructureSet:
    """Return the segments of a SEG, by their labels, as masks on the whole of `grid`.

    In a fractional SEG, a voxel counts from one half upwards. Segments may overlap, and may have frames for
    some slices only, or none. `Parotid` with the side left in its code is called `Parotid Left`.

    Args:
        path: The SEG's file: binary, fractional or a label map.
        headers: Headers of the CT's slices, as `lib.imaging.dicom_series.read_headers` returns them.
        grid: The CT's grid, from the same function.
        image_id: For messages.
        select: Given the labels of the segments with voxels, returns those to read; the others are ignored.

    Raises:
        LabelError: If the file is damaged or not a SEG, two selected segments with voxels have one label, or it
            is unknown to which segment frames belong.
        GeometryError: If it was drawn on another series or in another frame of reference, or a frame that is
            not empty does not lie on the scan's voxels.
    """
    try:
        dataset = opened(path, "SEG", image_id)
        names, changes = segments_of(dataset, image_id)
        pixels = FramePixels(dataset, image_id)
        drawn = drawn_segments(dataset, pixels, image_id)
        _require_described(drawn, names, image_id)
        chosen, more_changes = chosen_segments(names, drawn, select, image_id)
        changes += more_changes
        frame = str(dataset.get("FrameOfReferenceUID", "") or "")
        changes += require_same_scan(dataset, {"the SEG": frame}, headers, image_id)
        masks = {number: np.zeros(grid.shape_vox, np.bool_) for number in chosen}
        for seg_frame in frames_of(dataset, pixels, headers, image_id, segments=chosen):
            name = chosen[seg_frame.segment]
            where = f"{image_id}: frame {seg_frame.number} ({name!r})"
            mark_frame(masks[seg_frame.segment], seg_frame, grid, where)
        if dataset.SegmentationType == "FRACTIONAL":
            changes.append("the SEG is fractional; voxels of one half or more were read")
    except OrganNetError:
        raise
    except _DAMAGE as error:
        raise LabelError(f"{image_id}: the SEG is damaged ({error}); export it again") from error
    for number, name in chosen.items():
        slices = np.flatnonzero(masks[number].any(axis=(0, 1)))
        if len(slices) > 2 and np.diff(slices).min() > 1:
            changes.append(f"{name} has no voxel on the slices between {len(slices)} others")
    for change in changes:
        _log.info("%s: %s", image_id, change)
    return StructureSet(
        tuple(names.values()),
        {name: masks[number] for number, name in chosen.items()},
        tuple(changes),
    )


def _require_described(drawn: set[int], names: Mapping[int, str], image_id: str) -> None:
    """Raise LabelError if frames belong to a segment that the SEG does not describe."""
    unknown = sorted(drawn - set(names))
    if unknown:
        raise LabelError(
            f"{image_id}: frames of the SEG belong to the segments {unknown}, which it does not describe; it "
            f"describes {dict(names)}: export it again"
        )
