"""The pixels of one CT slice: stored values of any transfer syntax, and their conversion to HU.

Native and RLE pixels are decoded here, the compressed ones (JPEG, JPEG-LS, JPEG 2000) by GDCM. It leaves memory
as it was where a slice has too few pixels, so their number is checked before.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.uid import UID, ExplicitVRBigEndian, RLELossless

from lib.errors import ScanError
from lib.imaging.codestreams import require_whole_codestream
from lib.imaging.dicom_files import PARSING_ERRORS, read_dicom
from lib.imaging.dicom_values import numbers, slice_name
from lib.imaging.hounsfield import Rescale
from lib.imaging.pixel_padding import replace_padding
from lib.imaging.volumes import as_hu

MAX_SIDE_PIXELS = 4096
"""Largest Rows and Columns; CT slices have 256 to 2048."""

_RLE_HEADER_BYTES = 64

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """How the pixels of a slice are stored (PS3.3 C.7.6.3, PS3.5 section 8.1.1).

    Attributes:
        shape_yx: Rows and Columns.
        bits_allocated: Size of a pixel in bits: 8, 16 or 32.
        bits_stored: Number of bits that hold the value.
        high_bit: Number of the highest of them.
        is_signed: Whether the value is signed.
    """

    shape_yx: tuple[int, int]
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool

    @property
    def container(self) -> "np.dtype[Any]":
        """Type of an integer that holds all bits of a pixel."""
        return np.dtype(f"{'i' if self.is_signed else 'u'}{self.bits_allocated // 8}")

    @property
    def size_bytes(self) -> int:
        """Number of bytes of all pixels."""
        return self.shape_yx[0] * self.shape_yx[1] * self.bits_allocated // 8


def pixel_layout(header: Dataset, image_id: str) -> PixelLayout:
    """Return how the pixels of a slice are stored.

    Raises:
        ScanError: If it is not said, or is not possible.
    """
    rows, columns, allocated, stored, high, representation = (
        round(numbers(header, keyword, 1, image_id)[0])
        for keyword in (
            "Rows",
            "Columns",
            "BitsAllocated",
            "BitsStored",
            "HighBit",
            "PixelRepresentation",
        )
    )
    if max(rows, columns) > MAX_SIDE_PIXELS:
        raise ScanError(
            f"{image_id}: {slice_name(header)} has {rows} rows and {columns} columns; at most "
            f"{MAX_SIDE_PIXELS} expected: the file is damaged"
        )
    if (
        allocated not in (8, 16, 32)
        or not 1 <= stored <= allocated
        or not stored - 1 <= high < allocated
        or representation not in (0, 1)
    ):
        raise ScanError(
            f"{image_id}: {slice_name(header)} has BitsAllocated {allocated}, BitsStored {stored}, HighBit "
            f"{high}, PixelRepresentation {representation}; 16, 12 to 16, BitsStored - 1, and 0 or 1 expected: "
            "the file is damaged"
        )
    return PixelLayout((rows, columns), allocated, stored, high, bool(representation))


def rescale_of(header: Dataset, image_id: str) -> Rescale:
    """Return the slope and the intercept of a slice.

    Raises:
        ScanError: If one is missing, or is not possible.
    """
    slope, intercept = (
        numbers(header, keyword, 1, image_id)[0] for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    return slope, intercept


def slice_hu(header: FileDataset, layout: PixelLayout, image_id: str) -> Array:
    """Return the slice `(Y, X)` of a file in HU, int16 or float32, with padding at -1024.

    Args:
        header: Header of the slice; `header.filename` is its file.
        layout: From `pixel_layout`.
        image_id: For messages.

    Raises:
        ScanError: If the file does not hold exactly the pixels of `layout`, or they cannot be decoded.
    """
    rescale = rescale_of(header, image_id)
    slope, intercept = rescale
    raw_yx, values_yx = _stored_values(header, layout, rescale, image_id)
    is_small = layout.bits_allocated <= 16 and abs(slope) < 2**14 and abs(intercept) < 2**30
    if is_small and slope.is_integer() and intercept.is_integer():
        hu_yx: Array = values_yx.astype(np.int32) * int(slope) + int(intercept)
    else:
        hu_yx = values_yx * slope + intercept
    return as_hu(
        replace_padding(hu_yx, values_yx, raw_yx, header, rescale=rescale, image_id=image_id)
    )


def _stored_values(
    header: FileDataset, layout: PixelLayout, rescale: tuple[float, float], image_id: str
) -> tuple[Array, Array]:
    """Return all bits of each pixel `(Y, X)` as integers, and the stored values among them."""
    where = f"{image_id}: {slice_name(header)}"
    try:
        dataset = read_dicom(Path(str(header.filename)), with_pixels=True, keywords=["PixelData"])
        content = dataset.PixelData
        syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
        frame = (
            b"".join(generate_frames(content, number_of_frames=1))
            if syntax.is_encapsulated
            else content
        )
    except ScanError as error:
        raise ScanError(f"{image_id}: {error}") from error
    except PARSING_ERRORS as error:
        raise ScanError(
            f"{where} has no readable pixels ({error}); export the series again"
        ) from error
    if syntax == RLELossless:
        raw_yx = _rle_pixels(frame, layout, where)
    elif syntax.is_encapsulated:
        require_whole_codestream(frame, layout.shape_yx, where)
        raw_yx = _decode(Path(str(header.filename)), layout, rescale, where)
        return raw_yx, raw_yx
    else:
        is_big_endian = syntax == ExplicitVRBigEndian
        raw_yx = _native_pixels(frame, layout, where, is_big_endian=is_big_endian)
    if layout.bits_stored == layout.bits_allocated:
        return raw_yx, raw_yx
    # Bits beside the value may hold overlays.
    unused_above = np.array(layout.bits_allocated - 1 - layout.high_bit, raw_yx.dtype)
    unused = np.array(layout.bits_allocated - layout.bits_stored, raw_yx.dtype)
    return raw_yx, (raw_yx << unused_above) >> unused


def _native_pixels(frame: bytes, layout: PixelLayout, where: str, *, is_big_endian: bool) -> Array:
    expected = layout.size_bytes
    if not expected <= len(frame) <= expected + expected % 2:
        raise ScanError(
            f"{where} has {len(frame)} bytes of pixels, {expected} expected: the file is truncated or "
            "damaged; export the series again"
        )
    kind = layout.container.newbyteorder(">" if is_big_endian else "<")
    pixels = np.frombuffer(frame, kind, count=layout.shape_yx[0] * layout.shape_yx[1])
    return pixels.reshape(layout.shape_yx).astype(layout.container)


def _rle_pixels(frame: bytes, layout: PixelLayout, where: str) -> Array:
    """Return the pixels of an RLE frame: a segment for each byte of a pixel, the highest first (PS3.5 G)."""
    samples = layout.bits_allocated // 8
    count = layout.shape_yx[0] * layout.shape_yx[1]
    words = np.frombuffer(frame[:_RLE_HEADER_BYTES].ljust(_RLE_HEADER_BYTES, b"\0"), "<u4")
    bounds = [*(int(w) for w in words[1 : samples + 1]), len(frame)]
    if words[0] != samples or bounds != sorted(bounds) or bounds[0] < _RLE_HEADER_BYTES:
        raise ScanError(f"{where} has damaged RLE pixels; export the series again")
    planes = np.empty((count, samples), np.uint8)
    for number in range(samples):
        plane = _unpacked(frame[bounds[number] : bounds[number + 1]], count)
        if len(plane) != count:
            raise ScanError(
                f"{where} has {len(plane)}{'+' * (len(plane) > count)} bytes of RLE pixels where {count} are "
                "expected: truncated or damaged; export the series again"
            )
        planes[:, samples - 1 - number] = np.frombuffer(plane, np.uint8)
    pixels = planes.view(layout.container.newbyteorder("<"))
    return pixels.reshape(layout.shape_yx).astype(layout.container)


def _unpacked(segment: bytes, count: int) -> bytearray:
    """Return an RLE segment unpacked, up to one run beyond `count` bytes (PS3.5 section G.3.2)."""
    out, at, size = bytearray(), 0, len(segment)
    while at < size and len(out) <= count:
        code = segment[at]
        if code < 128:
            out += segment[at + 1 : at + 2 + code]
            at += code + 2
        else:
            out += segment[at + 1 : at + 2] * (257 - code if code > 128 else 0)
            at += 2 if code > 128 else 1
        if len(out) == count and size - at <= 1:  # a segment is padded to an even number of bytes
            break
    return out


def _decode(path: Path, layout: PixelLayout, rescale: tuple[float, float], where: str) -> Array:
    """Return the compressed pixels of a file, decoded by GDCM."""
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise ScanError(
            f"{where}: its compressed pixels cannot be decoded: damaged, or an unusual compression; export the "
            "series again"
        ) from error
    slope, intercept = rescale
    hu: Array = np.asarray(sitk.GetArrayFromImage(image))
    if hu.shape != (1, *layout.shape_yx):
        raise ScanError(
            f"{where}: its compressed pixels are decoded to shape {hu.shape}, {(1, *layout.shape_yx)} "
            "expected: the file is damaged"
        )
    # GDCM returns HU.
    stored: Array = np.rint((hu[0].astype(np.float64) - intercept) / slope).astype(np.int64)
    return stored.astype(layout.container)
