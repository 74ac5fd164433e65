"""Writing a CT volume as a DICOM series: for the demo, for tests, and for sending a scan to a PACS."""

from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from lib.errors import ScanError
from lib.imaging.geometry import ras_to_lps, require_right_angles
from lib.imaging.quantities import FloatArray
from lib.imaging.volumes import CtVolume

_INTERCEPT_HU = -1024


def write_ct_series(
    ct: CtVolume, folder: Path, *, patient_id: str, series_description: str = "OrganNet Label CT"
) -> str:
    """Write `ct` to `folder` as CT Image Storage, one file per slice, and return its SeriesInstanceUID.

    The array's z axis is the slice axis; x runs along a row of pixels, y down a column; their directions are
    the grid's. Files are numbered along cross(x, y), which is z unless the grid is left-handed. Values are
    stored as int16 with slope 1 and intercept -1024; fractions of a HU are rounded. Each call makes a new
    study. `patient_id` is also written as the patient's name: give a pseudonym.

    Raises:
        ScanError: If `folder` is not empty, or a value does not fit.
        GeometryError: If the grid's axes are not at right angles.
    """
    require_right_angles(ct.image_id, ct.grid)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ScanError(
            f"{ct.image_id}: {folder} is not empty; write the series into an empty folder"
        )
    if not (
        ct.array_hu.min() >= -32768 - _INTERCEPT_HU and ct.array_hu.max() <= 32767 + _INTERCEPT_HU
    ):
        raise ScanError(
            f"{ct.image_id}: values run from {ct.array_hu.min()} to {ct.array_hu.max()} HU; "
            f"{-32768 - _INTERCEPT_HU} to {32767 + _INTERCEPT_HU} can be stored"
        )
    stored = (np.rint(ct.array_hu) - _INTERCEPT_HU).astype("<i2")
    affine = ras_to_lps(ct.grid.affine_ras)
    spacing = np.array(ct.grid.spacing_mm)
    axes = affine[:3, :3] / spacing
    slices = list(range(ct.grid.shape_vox[2]))
    if np.linalg.det(axes) < 0:
        slices.reverse()
    common = _common_attributes(patient_id, series_description)
    common["PixelSpacing"] = _ds([spacing[1], spacing[0]])  # between rows, between columns
    common["SliceThickness"] = _ds([spacing[2]])[0]
    common["ImageOrientationPatient"] = _ds(axes[:, :2].T.ravel())
    for number, z in enumerate(slices, start=1):
        path = folder / f"ct_{number:04d}.dcm"
        dataset = _slice_dataset(path, stored[:, :, z].T, common)
        dataset.InstanceNumber = number
        dataset.ImagePositionPatient = _ds(affine[:3, 3] + affine[:3, 2] * z)
        dataset.save_as(path, enforce_file_format=True)
    return str(common["SeriesInstanceUID"])


def _ds(values: FloatArray | list[float]) -> list[str]:
    """Return decimal strings of at most 16 characters (PS3.5 section 6.2)."""
    return [format_number_as_ds(float(v)) for v in values]


def _common_attributes(patient_id: str, series_description: str) -> dict[str, object]:
    """Return the attributes common to all slices, by keyword: modules of the CT Image IOD (PS3.3 A.3)."""
    now = datetime.now(timezone.utc)
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["DERIVED", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "StudyDate": date,
        "SeriesDate": date,
        "ContentDate": date,
        "StudyTime": time,
        "SeriesTime": time,
        "ContentTime": time,
        "AccessionNumber": "",
        "Modality": "CT",
        "BodyPartExamined": "HEADNECK",
        "Manufacturer": "OrganNet Label",
        "ReferringPhysicianName": "",
        "StudyDescription": series_description,
        "SeriesDescription": series_description,
        "PatientName": patient_id,
        "PatientID": patient_id,
        "PatientBirthDate": "",
        "PatientSex": "",
        "KVP": None,
        "PatientPosition": "HFS",
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "StudyID": "1",
        "SeriesNumber": 1,
        "AcquisitionNumber": None,
        "FrameOfReferenceUID": generate_uid(),
        "PositionReferenceIndicator": "",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "WindowCenter": "40",
        "WindowWidth": "400",
        "RescaleIntercept": str(_INTERCEPT_HU),
        "RescaleSlope": "1",
        "RescaleType": "HU",
    }


def _slice_dataset(path: Path, stored_yx: "np.ndarray[tuple[int, ...], np.dtype[np.int16]]",
                   common: dict[str, object]) -> FileDataset:  # fmt: skip
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword, value in common.items():
        setattr(dataset, keyword, value)
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = stored_yx.shape
    dataset.PixelData = np.ascontiguousarray(stored_yx).tobytes()
    return dataset
