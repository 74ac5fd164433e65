"""Putting a DICOM object on disk."""

from pathlib import Path

from pydicom.dataset import Dataset

from lib.errors import StorageFullError
from lib.storage.atomic_files import is_disk_full, replacing


def save(path: Path, dataset: Dataset, image_id: str) -> None:
    """Write `dataset` as a file of PS3.10, whole or not at all.

    Raises:
        StorageFullError: If the disk is full.
    """
    try:
        with replacing(path) as beside:
            dataset.save_as(beside, enforce_file_format=True)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFullError(
                f"{image_id}: {path.name} could not be written, the disk is full; everything that was there is "
                "untouched"
            ) from error
        raise
