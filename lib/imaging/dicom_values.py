"""Access to the values of DICOM headers: checked numbers, and names for messages."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from lib.errors import ScanError
from lib.imaging.dicom_files import PARSING_ERRORS, text_of

POSITIVE = ("Rows", "Columns", "PixelSpacing", "RescaleSlope", "BitsAllocated", "BitsStored")
"""Attributes whose numbers are above 0."""


def slice_name(header: Dataset) -> str:
    """Return the name of a slice for messages: its file name, or its SOPInstanceUID in the PACS."""
    file = getattr(header, "filename", None)
    return Path(str(file)).name if file else f"instance {text_of(header, 'SOPInstanceUID')}"


def numbers(header: Dataset, keyword: str, size: int, image_id: str) -> list[float]:
    """Return the `size` numbers of an attribute.

    Raises:
        ScanError: If there are not as many, or one is not finite, or not positive where it must be.
    """
    found = optional_numbers(header, keyword)
    is_usable = len(found) == size and bool(np.isfinite(found).all())
    if not is_usable or (keyword in POSITIVE and min(found) <= 0):
        raise ScanError(
            f"{image_id}: {slice_name(header)} has no usable {keyword} ({size} finite "
            f"{'positive ' * (keyword in POSITIVE)}numbers expected); export the series again"
        )
    return found


def optional_numbers(header: Dataset, keyword: str) -> list[float]:
    """Return the numbers of an attribute; none if it is missing, or is not made of numbers."""
    try:
        value = header[keyword].value
        return [float(v) for v in ([value] if isinstance(value, str | float | int) else value)]
    except PARSING_ERRORS:
        return []
