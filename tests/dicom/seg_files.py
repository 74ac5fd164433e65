"""DICOM SEG files as viewers write them (dcmjs, used by OHIF): frames of some slices only, in any order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from lib.dicom.seg import read_seg
from lib.dicom.structures import StructureSet
from tests.dicom.organ_phantom import Case

Plane = npt.NDArray[np.uint8]
SEGMENTATION = UID("1.2.840.10008.5.1.4.1.1.66.4")


@dataclass
class FrameSpec:
    """A frame of a segment on a slice of the CT; `position` and `orientation` override those of the slice."""

    segment: int
    slice: FileDataset
    pixels_yx: npt.NDArray[np.uint8]
    position: Sequence[float] | None = None
    orientation: Sequence[float] | None = None


@dataclass
class SegSpec:
    """A SEG: its segment numbers and labels, and its frames."""

    segments: dict[int, str]
    frames: list[FrameSpec] = field(default_factory=list)
    kind: str = "BINARY"
    series: str | None = None
    frame_of_reference: str | None = None
    has_positions: bool = True


def write_viewer_seg(path: Path, spec: SegSpec) -> None:
    """Write `spec`; its `series` and `frame_of_reference` override those of the CT, "" omits them."""
    ct = spec.frames[0].slice
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SEGMENTATION, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = SEGMENTATION, meta.MediaStorageSOPInstanceUID
    file.Modality, file.SegmentationType = "SEG", spec.kind
    frame = ct.FrameOfReferenceUID if spec.frame_of_reference is None else spec.frame_of_reference
    if frame:
        file.FrameOfReferenceUID = frame
    if spec.series != "":
        series = Dataset()
        series.SeriesInstanceUID = spec.series or ct.SeriesInstanceUID
        file.ReferencedSeriesSequence = [series]
    file.SegmentSequence = [_segment(number, label) for number, label in spec.segments.items()]
    shared = Dataset()
    if spec.has_positions:
        measures = Dataset()
        measures.PixelSpacing = ct.PixelSpacing
        shared.PixelMeasuresSequence = [measures]
    file.SharedFunctionalGroupsSequence = [shared]
    file.PerFrameFunctionalGroupsSequence = [_group(f, spec) for f in spec.frames]
    file.NumberOfFrames = len(spec.frames)
    file.Rows, file.Columns = spec.frames[0].pixels_yx.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 1 if spec.kind == "BINARY" else 8
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, 0
    if spec.kind == "FRACTIONAL":
        file.MaximumFractionalValue = 255
    pixels = np.concatenate([f.pixels_yx.ravel() for f in spec.frames]).astype(np.uint8)
    packed = np.packbits(pixels, bitorder="little") if spec.kind == "BINARY" else pixels
    file.PixelData = packed.tobytes() + b"\0" * (packed.size % 2)
    file.save_as(path, enforce_file_format=True)


def _segment(number: int, label: str) -> Dataset:
    segment, code = Dataset(), Dataset()
    segment.SegmentNumber, segment.SegmentLabel = number, label
    segment.SegmentAlgorithmType = "MANUAL"
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "85756007", "SCT", "Tissue"
    segment.SegmentedPropertyTypeCodeSequence = [code]
    return segment


def _group(frame: FrameSpec, spec: SegSpec) -> Dataset:
    group, plane, orientation, identified = Dataset(), Dataset(), Dataset(), Dataset()
    if spec.has_positions:
        plane.ImagePositionPatient = list(frame.position or frame.slice.ImagePositionPatient)
        group.PlanePositionSequence = [plane]
        own = frame.slice.ImageOrientationPatient
        orientation.ImageOrientationPatient = list(frame.orientation or own)
        group.PlaneOrientationSequence = [orientation]
    identified.ReferencedSegmentNumber = frame.segment
    group.SegmentIdentificationSequence = [identified]
    derivation, source = Dataset(), Dataset()
    source.ReferencedSOPClassUID = frame.slice.SOPClassUID
    source.ReferencedSOPInstanceUID = frame.slice.SOPInstanceUID
    derivation.SourceImageSequence = [source]
    group.DerivationImageSequence = [derivation]
    return group


def plane(case: Case, *boxes: Sequence[int]) -> Plane:
    """Return a frame `(Y, X)` with the boxes `x_0, y_0, x_1, y_1` (ends included) marked."""
    pixels = np.zeros(case.grid.shape_vox[1::-1], np.uint8)
    for x_0, y_0, x_1, y_1 in boxes:
        pixels[y_0 : y_1 + 1, x_0 : x_1 + 1] = 1
    return pixels


def read(case: Case, tmp_path: Path, spec: SegSpec) -> StructureSet:
    write_viewer_seg(tmp_path / "viewer.dcm", spec)
    return read_seg(tmp_path / "viewer.dcm", case.headers, case.grid, image_id="case7")


def voxels(structures: StructureSet, name: str) -> list[list[int]]:
    marked: list[list[int]] = np.argwhere(structures.masks[name]).tolist()
    return marked


def edited(case: Case, path: Path, spec: SegSpec, change: Callable[[Any], object]) -> StructureSet:
    write_viewer_seg(path, spec)
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return read_seg(path, case.headers, case.grid, image_id="case7")
