"""A phantom as a DICOM series, and changes to its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from lib.dicom.ct_writer import write_ct_series
from lib.errors import ScanError
from lib.imaging.dicom_series import read_series
from tests.phantoms import make_ct

Edit = Callable[[int, Any], object]


def phantom_series(folder: Path) -> Path:
    """Write the upright phantom as 12 files `ct_0001.dcm`, ... from feet to head, and return the folder."""
    write_ct_series(make_ct(), folder, patient_id="anonymous")
    return folder


def edit(folder: Path, change: Edit, *, only: int | None = None) -> None:
    """Apply `change(index, dataset)` to every slice's file, or to one."""
    for i, path in enumerate(sorted(folder.glob("*.dcm"))):
        if only in (None, i):
            dataset = pydicom.dcmread(path)
            change(i, dataset)
            dataset.save_as(path)


def put(**values: object) -> Edit:
    """Return an edit that sets attributes; None removes one."""

    def change(_: int, dataset: Any) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return change


def put_along(**values: Callable[[int], object]) -> Edit:
    """Return an edit that sets attributes to a function of the slice's number; None leaves one out."""

    def change(i: int, dataset: Any) -> None:
        for keyword, value in values.items():
            if value(i) is not None:
                setattr(dataset, keyword, value(i))

    return change


def move(offsets_mm: Callable[[int], tuple[float, float, float]]) -> Edit:
    """Return an edit that moves slice `i` by `offsets_mm(i)`."""

    def change(i: int, dataset: Any) -> None:
        position = np.array(dataset.ImagePositionPatient, float) + offsets_mm(i)
        dataset.ImagePositionPatient = [float(v) for v in position]

    return change


def copy_series(source: Path, target: Path, **values: object) -> None:
    """Write the slices of `source` to `target`, with other UIDs and `values`."""
    target.mkdir(exist_ok=True)
    for path in source.glob("ct_*.dcm"):
        dataset = pydicom.dcmread(path)
        put(**{"SOPInstanceUID": generate_uid(), **values})(0, dataset)
        dataset.save_as(target / f"copy_{path.name}")


def refusal(folder: Path) -> str:
    """Return why the series is refused; empty if it is read."""
    try:
        read_series(folder, image_id="case7")
    except ScanError as error:
        return str(error)
    return ""
