"""Pixels of the frames of a DICOM SEG, in any transfer syntax; less or more of them than stated is refused.

Decoders leave memory as it was where a frame has too few pixels, so that their number is checked first.
"""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian

from lib.errors import LabelError, ScanError
from lib.imaging.dicom_files import PARSING_ERRORS
from lib.isolation.reader_pool import readers

MAX_SIDE_PIXELS = 4096
"""Largest Rows and Columns; CT slices have 256 to 2048."""

_KIND = {1: "u1", 8: "u1", 16: "u2"}
"""BitsAllocated -> type of the pixels."""

FrameArray = np.ndarray[tuple[int, ...], np.dtype[Any]]


class FramePixels:
    """The pixels `(Y, X)` of each frame of a SEG; may be iterated over several times.

    Args:
        dataset: The SEG; `dataset.filename` is its file.
        image_id: For messages.

    Raises:
        LabelError: If the size of the frames is impossible, or the pixels are not as many as stated.
    """

    def __init__(self, dataset: Dataset, image_id: str) -> None:
        self._shape = _frame_shape(dataset, image_id)
        self._bits = int(dataset.BitsAllocated)
        self._content: bytes = dataset.PixelData
        self._frames: Iterable[FrameArray] | None = None
        count, rows, columns = self._shape
        syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
        if syntax.is_encapsulated:
            self._frames = _decoded_in_reader(dataset, syntax, image_id)
            return
        expected = -(-rows * columns * count * self._bits // 8)
        found = len(self._content)
        if not expected <= found <= expected + expected % 2:
            raise _wrong_size(f"{found} bytes of pixels", str(expected), image_id)
        if self._bits > 1:
            kind = (">" if syntax == ExplicitVRBigEndian else "<") + _KIND[self._bits]
            pixels = np.frombuffer(self._content, kind, count=rows * columns * count)
            self._frames = pixels.reshape(self._shape)

    def __iter__(self) -> Iterator[FrameArray]:
        """Yield the pixels of the frames in their order."""
        if self._frames is not None:
            yield from self._frames
            return
        # Frame by frame: all frames unpacked would be eight times the file's size.
        count, rows, columns = self._shape
        packed, size = np.frombuffer(self._content, np.uint8), rows * columns
        for first in range(0, size * count, size):
            pixels = np.unpackbits(packed[first // 8 : -(-(first + size) // 8)], bitorder="little")
            yield pixels[first % 8 : first % 8 + size].reshape(rows, columns)


def _frame_shape(dataset: Dataset, image_id: str) -> tuple[int, int, int]:
    """Return the number of frames, rows and columns."""
    rows, columns, bits = (int(dataset[k].value) for k in ("Rows", "Columns", "BitsAllocated"))
    count, samples = int(dataset.NumberOfFrames), int(dataset.get("SamplesPerPixel", 1) or 1)
    if (
        not (0 < rows <= MAX_SIDE_PIXELS and 0 < columns <= MAX_SIDE_PIXELS)
        or bits not in _KIND
        or samples != 1
        or count < 1
        or int(dataset.get("PixelRepresentation", 0) or 0)
    ):
        raise LabelError(
            f"{image_id}: the SEG has {count} frames of {rows} x {columns} pixels of {samples} samples of "
            f"{bits} bits; unsigned pixels of 1, 8 or 16 bits in at most {MAX_SIDE_PIXELS} rows and columns "
            "expected: export it again"
        )
    return count, rows, columns


def _decoded_in_reader(dataset: Dataset, syntax: UID, image_id: str) -> FrameArray:
    """Return the compressed pixels `(frame, Y, X)`, decoded in a process of its own (`lib.isolation`)."""
    try:
        is_known = get_decoder(syntax).is_available
    except NotImplementedError:
        is_known = False
    if not is_known:
        raise LabelError(
            f"{image_id}: the SEG is compressed as {syntax.name}, which this program cannot read; export it "
            "without compression"
        )
    path = Path(str(dataset.filename)).absolute()
    try:
        _, array = readers().run(
            "lib.dicom.reader_tasks:pixels",
            {"path": str(path), "case": image_id},
            path=path,
            case=image_id,
        )
    except ScanError as error:
        raise LabelError(str(error)) from error
    if array is None or array.ndim != 3:
        raise LabelError(f"{image_id}: the SEG has no pixels; export it again")
    return array.T


def decoded(dataset: Dataset, image_id: str) -> FrameArray:
    """Return the compressed pixels `(frame, Y, X)`; a task of reader processes, not thread-safe.

    Raises:
        LabelError: If there are fewer or more frames than stated, they have another size, or are damaged.
    """
    rows, columns, count = (int(dataset[k].value) for k in ("Rows", "Columns", "NumberOfFrames"))
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    frames = generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets)
    array = np.zeros((count, rows, columns), _KIND[int(dataset.BitsAllocated)])
    options: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": int(dataset.BitsAllocated),
        "bits_stored": int(dataset.BitsStored),
        "pixel_representation": 0,
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
    }
    found = 0
    for found, frame in enumerate(frames, start=1):
        if found > count:
            break
        try:
            with warnings.catch_warnings(action="error"):  # of more pixels than stated
                pixels, about = decoder.as_buffer(encapsulate([frame]), **options)
        except (*PARSING_ERRORS, RuntimeError, Warning) as error:
            raise LabelError(
                f"{image_id}: the pixels of frame {found} of the SEG are damaged ({error}); export it again"
            ) from error
        kind = np.dtype(_KIND[int(about["bits_allocated"])])
        if len(pixels) != rows * columns * kind.itemsize:
            name = f"{len(pixels)} bytes of pixels in frame {found}"
            raise _wrong_size(name, str(rows * columns * kind.itemsize), image_id)
        array[found - 1] = np.frombuffer(pixels, kind).reshape(rows, columns)
    if found != count:
        raise _wrong_size(f"{found}{'+' * (found > count)} frames of pixels", str(count), image_id)
    return array


def _wrong_size(found: str, expected: str, image_id: str) -> LabelError:
    return LabelError(
        f"{image_id}: the SEG is truncated or damaged: {found}, {expected} expected; export it again"
    )
