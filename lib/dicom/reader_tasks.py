"""Tasks of reader processes (`lib.isolation`): the compressed pixels of a SEG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.dicom.seg_pixels import decoded
from lib.imaging.dicom_files import read_dicom
from lib.isolation.array_transfer import Array, ArrayStream


def pixels(
    arguments: Mapping[str, Any], _stream: ArrayStream, /
) -> tuple[Mapping[str, Any], Array]:
    """Return the pixels of all frames of a DICOM object, `(X, Y, frame)`, as `lib.dicom.seg_pixels.decoded`."""
    dataset = read_dicom(Path(arguments["path"]), with_pixels=True)
    return {}, decoded(dataset, arguments["case"]).T
