"""Tasks of reader processes (`lib.isolation`): the compressed pixels of a SEG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.imaging.dicom_files import read_dicom
from lib.isolation.array_transfer import Array


def pixels(arguments: Mapping[str, Any], /) -> tuple[Mapping[str, Any], Array]:
    """Return the pixels of all frames of a DICOM object, `(X, Y, frame)`."""
    dataset = read_dicom(Path(arguments["path"]), with_pixels=True)
    shape = (int(dataset.NumberOfFrames), int(dataset.Rows), int(dataset.Columns))
    return {}, np.asarray(dataset.pixel_array).reshape(shape).T
