"""Selection of the slices of one CT among the DICOM objects of a folder or of a PACS series.

Beside a CT, planning systems, scanners and archives export objects that are no slices: structures, plans,
portal images, dose pages, documents, a DICOMDIR. They are left out. A second series is refused.
"""

import filecmp
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from lib.errors import ScanError
from lib.imaging.dicom_files import text_of
from lib.imaging.dicom_values import slice_name

MULTI_FRAME_CT = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)

_SCANS = (CTImageStorage, *MULTI_FRAME_CT, MRImageStorage, EnhancedMRImageStorage,
          LegacyConvertedEnhancedMRImageStorage, PositronEmissionTomographyImageStorage,
          EnhancedPETImageStorage, LegacyConvertedEnhancedPETImageStorage)  # fmt: skip
"""SOP classes of cross-sectional images; objects of other classes beside a CT are left out."""

_COMPANIONS = ("RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE", "REG", "SEG", "SR", "PR", "KO", "DOC",
               "AU", "ECG", "FID", "PLAN", "RWV", "SMR")  # fmt: skip
"""Modalities of objects without slices."""

_log = logging.getLogger(__name__)
_Header = TypeVar("_Header", bound=Dataset)


def is_localizer(header: Dataset) -> bool:
    """Return whether the image is a localizer: a projection for planning a scan (PS3.3 C.8.2.1.1.1)."""
    return "LOCALIZER" in text_of(header, "ImageType")


def is_capture(header: Dataset) -> bool:
    """Return whether the image is not a CT image: a screen capture or a dose report, for example."""
    return text_of(header, "SOPClassUID") not in (CTImageStorage, *MULTI_FRAME_CT)


def select_slices(headers: Sequence[_Header], image_id: str) -> list[_Header]:
    """Return the headers of the only CT series among `headers`, unsorted; an object that is there twice, once.

    Raises:
        ScanError: If there is not exactly one series of single-frame, monochrome CT images, or two different
            objects have one SOPInstanceUID.
    """
    scans = _without_repeats(_without_companions(headers, image_id), image_id)
    if len(scans) < len(headers):
        _log.info(
            "%s: left out %d DICOM files that are no slices", image_id, len(headers) - len(scans)
        )
    series = Counter((text_of(h, "SeriesInstanceUID"), text_of(h, "Modality")) for h in scans)
    if len(series) > 1:
        listing = ", ".join(
            f"{modality} of {n} slices" for (_, modality), n in series.most_common()
        )
        raise ScanError(
            f"{image_id}: the folder holds {len(series)} series ({listing}); give a folder with one of them"
        )
    for header in scans:
        _require_ct_slice(header, image_id)
    return scans


def _without_companions(headers: Sequence[_Header], image_id: str) -> list[_Header]:
    """Return the headers of slices; of all images but localizers if there is no CT slice among them."""
    images = [h for h in headers if text_of(h, "Modality") not in _COMPANIONS]
    if not images:
        modalities = ", ".join(sorted({text_of(h, "Modality") or "no image" for h in headers}))
        raise ScanError(
            f"{image_id}: the folder holds {modalities} but no CT; export the CT series as well"
        )
    scans = [h for h in images if not is_localizer(h)]
    if not scans:
        raise ScanError(
            f"{image_id}: the folder holds localizers only; export the CT series itself"
        )
    if any(text_of(h, "Modality") == "CT" and not is_capture(h) for h in scans):
        return [h for h in scans if not _is_other_object(h)]
    return scans


def _is_other_object(header: Dataset) -> bool:
    """Return whether the SOP class is known and not that of a scan; a damaged slice may have none."""
    uid = UID(text_of(header, "SOPClassUID"))
    return uid not in _SCANS and (uid.type == "SOP Class" or (uid.is_valid and uid.is_private))


def _without_repeats(headers: Sequence[_Header], image_id: str) -> list[_Header]:
    """Return the headers, each object once."""
    first: dict[str, _Header] = {}
    kept: list[_Header] = []
    for header in headers:
        uid = text_of(header, "SOPInstanceUID")
        if not uid or first.setdefault(uid, header) is header:
            kept.append(header)
        elif not _is_same_object(first[uid], header):
            raise ScanError(
                f"{image_id}: {slice_name(first[uid])} and {slice_name(header)} have the same SOPInstanceUID "
                "and different content; keep the right one of them"
            )
    return kept


def _is_same_object(one: Dataset, other: Dataset) -> bool:
    files = [getattr(header, "filename", None) for header in (one, other)]
    if all(files):
        return filecmp.cmp(str(files[0]), str(files[1]), shallow=False)
    return one == other


def _require_ct_slice(header: Dataset, image_id: str) -> None:
    """Raise unless `header` belongs to a single monochrome CT slice."""
    modality, sop_class = text_of(header, "Modality"), text_of(header, "SOPClassUID")
    if modality != "CT":
        raise ScanError(
            f"{image_id}: the series is of modality {modality or 'unknown'}; CT expected"
        )
    if sop_class in MULTI_FRAME_CT or text_of(header, "NumberOfFrames") not in ("", "1"):
        raise ScanError(
            f"{image_id}: {slice_name(header)} is a multi-frame (enhanced) CT; export it as single-frame "
            "CT Image Storage"
        )
    if sop_class != CTImageStorage:
        raise ScanError(
            f"{image_id}: {slice_name(header)} is of SOP class {UID(sop_class).name or 'unknown'}; "
            "CT Image Storage expected: screen captures and reconstructions are not scans"
        )
    samples, kind = text_of(header, "SamplesPerPixel"), text_of(header, "PhotometricInterpretation")
    if samples != "1" or kind != "MONOCHROME2":
        raise ScanError(
            f"{image_id}: {slice_name(header)} holds {samples or 'no'} sample(s) per pixel, {kind or 'unknown'}"
            "; one sample, MONOCHROME2, expected: colour and inverted images are not in HU"
        )
