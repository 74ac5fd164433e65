"""Voxels of volume files, read to the last byte: less or more of them than the header states is refused."""

import math
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import numpy as np

from lib.errors import ScanError
from lib.imaging.volume_headers import VoxelLayout
from lib.isolation.array_transfer import Array, parts_of

MAX_TRAILING_BYTES = 4096
"""Zeros and line ends after the voxels up to this number are accepted, as some programs pad their files."""
_CHUNK_BYTES = 2**18
_PADDING = b"\0\r\n\t "
_MAX_TEXT_BYTES_PER_VOXEL = 40
_MOST_INFLATED = 1032
"""Largest ratio of unpacked to packed bytes (zlib's technical notes: 258 bytes from two bits)."""
_ANY_DEFLATED = 47
"""zlib's number for a stream with the header of zlib or gzip."""
_GZIP_MAGIC = b"\x1f\x8b"


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def fill(array: Array, layout: VoxelLayout, file: BinaryIO, case: str) -> None:
    """Read the voxels of a file into `array`, which has the layout's type in the byte order of this machine.

    Args:
        array: In Fortran order, with as many voxels as the layout.
        layout: Where and how the voxels are stored.
        file: The file.
        case: For messages.

    Raises:
        ScanError: If the file holds fewer or more voxels.
        EOFError: If compressed data ends early.
        zlib.error: If it is damaged.
    """
    if layout.encoding in ("text", "hex"):
        go_to_voxels(layout, file, case)
        _fill_from_text(array, layout, file, case)
        return
    fill_parts(parts_of(array), layout, file, case)
    if not layout.dtype.isnative:
        array.byteswap(inplace=True)


def fill_parts(parts: Iterator[memoryview], layout: VoxelLayout, file: BinaryIO, case: str) -> None:
    """Read the voxels of a file, as they are stored but unpacked, into one piece of memory after the other.

    Args:
        parts: As many bytes as the layout has.
        layout: Where and how the voxels are stored, but not as text.
        file: As in `fill`.
        case: As in `fill`.

    Raises:
        ScanError: As `fill`; `EOFError` and `zlib.error` as well.
    """
    content = go_to_voxels(layout, file, case)
    filled = 0
    for part in parts:
        end = filled + len(part)
        while filled < end:
            found = _read_into(part[filled - end :], content)
            if not found:
                _require_size(case, filled, layout.size_bytes)
            filled += found
    rest = content.read(MAX_TRAILING_BYTES + 1)
    if len(rest) > MAX_TRAILING_BYTES or rest.strip(_PADDING):
        raise ScanError(
            f"{case}: the file holds more voxels than the {math.prod(layout.sizes)} of its header; it is "
            "damaged: export it again"
        )


def require_possible_size(layout: VoxelLayout, file: BinaryIO, case: str) -> None:
    """Raise if a file is too small for its voxels, before memory is used for them.

    Raises:
        ScanError: If it is.
    """
    size = os.fstat(file.fileno()).st_size - max(0, layout.offset)
    if layout.encoding == "raw":
        _require_size(case, max(0, size - layout.skipped_bytes), layout.size_bytes)
    elif layout.encoding == "deflated":
        _require_size(case, max(0, size) * _MOST_INFLATED, layout.size_bytes)


def go_to_voxels(layout: VoxelLayout, file: BinaryIO, case: str) -> _Readable:
    """Go to the first voxel of a file, and return what the voxels are read from: the file, or it unpacked.

    Raises:
        ScanError: If the voxels are the last bytes of a file that is too short.
    """
    if layout.offset < 0:
        _require_size(case, os.fstat(file.fileno()).st_size, layout.size_bytes)
        file.seek(-layout.size_bytes, os.SEEK_END)
    else:
        file.seek(layout.offset)
    for _ in range(layout.skipped_lines):
        file.readline(_CHUNK_BYTES)
    content: _Readable = _Inflated(file) if layout.encoding == "deflated" else file
    skipped = layout.skipped_bytes
    while skipped and (chunk := content.read(min(skipped, _CHUNK_BYTES))):
        skipped -= len(chunk)
    return content


def unpacked_start(file: BinaryIO, size: int) -> bytes:
    """Return the first `size` unpacked bytes of a compressed file; fewer if it has fewer.

    Raises:
        ValueError: If it does not begin as gzip does (RFC 1952, 2.3.1).
        EOFError: If the file ends inside compressed data; `zlib.error` if it is damaged.
    """
    if file.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
        raise ValueError("it does not begin as gzip does")
    file.seek(0)
    return b"".join(_pieces(_Inflated(file), size))


def _read_into(part: memoryview, content: _Readable) -> int:
    read_into = getattr(content, "readinto", None)
    if read_into is not None:
        return int(read_into(part))
    chunk = content.read(len(part))
    part[: len(chunk)] = chunk
    return len(chunk)


def _require_size(case: str, found: int, expected: int) -> None:
    if found < expected:
        raise ScanError(
            f"{case}: the file is truncated: {found} bytes of voxels, {expected} expected; copy it again"
        )


class _Inflated:
    """The unpacked content of the zlib or gzip streams in a file; never more in memory than was asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = zlib.decompressobj(wbits=_ANY_DEFLATED)
        self._packed = b""
        self._has_ended = False

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end.

        Raises:
            EOFError: If the file ends inside a stream.
        """
        unpacked = b""
        while not (unpacked or self._has_ended):
            packed = self._packed or self._file.read(_CHUNK_BYTES)
            unpacked = self._stream.decompress(packed, size)
            self._packed = self._stream.unconsumed_tail
            if self._stream.eof:
                self._begin_next()
            elif not packed and not unpacked:
                raise EOFError
        return unpacked

    def _begin_next(self) -> None:
        """Go on with the next gzip stream, as files may be concatenated; anything else is no data."""
        self._packed = self._stream.unused_data or self._file.read(_CHUNK_BYTES)
        self._has_ended = not self._packed.startswith(_GZIP_MAGIC)
        self._stream = zlib.decompressobj(wbits=_ANY_DEFLATED)


def _fill_from_text(array: Array, layout: VoxelLayout, content: _Readable, case: str) -> None:
    limit = _MAX_TEXT_BYTES_PER_VOXEL * array.size + MAX_TRAILING_BYTES
    text = b"".join(_pieces(content, limit))
    try:
        if layout.encoding == "hex":
            numbers = np.frombuffer(bytes.fromhex(text.decode("ascii")), layout.dtype)
        else:
            numbers = np.array(text.replace(b",", b" ").split(), dtype=np.float64)
    except ValueError as error:
        raise ScanError(f"{case}: the voxels are not numbers ({error}); export it again") from error
    if numbers.size != array.size:
        raise ScanError(
            f"{case}: the file holds {numbers.size} voxels, {array.size} expected; it is damaged: "
            "export it again"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        array[...] = numbers.astype(array.dtype).reshape(array.shape, order="F")
    if layout.encoding == "text" and array.dtype.kind in "iu" and not np.array_equal(
        array.reshape(-1, order="F"), numbers
    ):  # fmt: skip
        raise ScanError(
            f"{case}: some voxels do not fit {array.dtype}, the type that the header states; export it again"
        )


def _pieces(content: _Readable, limit: int) -> Iterator[bytes]:
    while limit > 0 and (chunk := content.read(min(limit, _CHUNK_BYTES))):
        limit -= len(chunk)
        yield chunk
