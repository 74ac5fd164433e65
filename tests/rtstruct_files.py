"""RTSTRUCT files as a planning system writes them, for tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from lib.imaging.geometry import Grid, ras_to_lps

RT_STRUCTURE_SET = UID("1.2.840.10008.5.1.4.1.1.481.3")
Corners = Sequence[tuple[float, float]]


@dataclass
class RoiSpec:
    """A ROI: its name, its contours in LPS mm, and their common geometric type."""

    name: str
    contours: list[npt.ArrayLike] = field(default_factory=list)
    kind: str = "CLOSED_PLANAR"


def in_slice(grid: Grid, corners_vox: Corners, z_vox: float) -> npt.NDArray[np.float64]:
    """Return corners in LPS mm; they are given in voxels of slice `z_vox`."""
    indices = np.array([[x, y, z_vox, 1] for x, y in corners_vox])
    return np.asarray((indices @ ras_to_lps(grid.affine_ras).T)[:, :3])


def box_corners(low_x: float, low_y: float, high_x: float, high_y: float) -> Corners:
    """Return a rectangle's corners, counter-clockwise."""
    return [(low_x, low_y), (high_x, low_y), (high_x, high_y), (low_x, high_y)]


def write_rtstruct(
    path: Path,
    headers: Sequence[FileDataset],
    rois: Sequence[RoiSpec],
    *,
    frame: str | None = None,
    series: str | None = None,
    decimals: int = 3,
) -> None:
    """Write `rois` on the series of `headers`; `frame` and `series` override its UIDs, "" omits them."""
    ct = headers[0]
    frame = str(ct.FrameOfReferenceUID) if frame is None else frame
    series = str(ct.SeriesInstanceUID) if series is None else series
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RT_STRUCTURE_SET
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.Modality = "RTSTRUCT"
    file.PatientName, file.PatientID = ct.PatientName, ct.PatientID
    file.StudyInstanceUID, file.SeriesInstanceUID = ct.StudyInstanceUID, generate_uid()
    file.StructureSetLabel = "PLAN"
    if series:
        file.ReferencedFrameOfReferenceSequence = [_references(headers, frame, series)]
    file.StructureSetROISequence = DicomSequence()
    file.ROIContourSequence = DicomSequence()
    for number, roi in enumerate(rois, start=1):
        entry = Dataset()
        entry.ROINumber, entry.ROIName, entry.ROIGenerationAlgorithm = number, roi.name, "MANUAL"
        if frame:
            entry.ReferencedFrameOfReferenceUID = frame
        file.StructureSetROISequence.append(entry)
        file.ROIContourSequence.append(_contours(number, roi, decimals))
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def _references(headers: Sequence[FileDataset], frame: str, series: str) -> Dataset:
    images = DicomSequence()
    for header in headers:
        image = Dataset()
        image.ReferencedSOPClassUID = header.SOPClassUID
        image.ReferencedSOPInstanceUID = header.SOPInstanceUID
        images.append(image)
    in_series, in_study, in_frame = Dataset(), Dataset(), Dataset()
    in_series.SeriesInstanceUID, in_series.ContourImageSequence = series, images
    in_study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    in_study.ReferencedSOPInstanceUID = headers[0].StudyInstanceUID
    in_study.RTReferencedSeriesSequence = [in_series]
    in_frame.FrameOfReferenceUID = frame
    in_frame.RTReferencedStudySequence = [in_study]
    return in_frame


def _contours(number: int, roi: RoiSpec, decimals: int) -> Dataset:
    entry = Dataset()
    entry.ReferencedROINumber = number
    entry.ROIDisplayColor = [255, 0, 0]
    if roi.contours:
        entry.ContourSequence = DicomSequence()
    for contour in roi.contours:
        points = np.asarray(contour, float).reshape(-1, 3)
        item = Dataset()
        item.ContourGeometricType = roi.kind
        item.NumberOfContourPoints = len(points)
        item.ContourData = [f"{v:.{decimals}f}" for v in points.ravel()]
        entry.ContourSequence.append(item)
    return entry
