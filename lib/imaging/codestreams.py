"""Checks that a JPEG, JPEG-LS or JPEG 2000 codestream is whole and has the expected size.

Decoders read a truncated codestream without an error, or leave the rest of the image as the memory was. Markers
are those of ITU-T T.81 (JPEG), T.87 (JPEG-LS) and T.800 (JPEG 2000); none of them occurs within coded data.
"""

import struct
from collections.abc import Iterator

from lib.errors import ScanError

_START, _END, _SCAN = 0xFFD8, 0xFFD9, 0xFFDA
_FRAMES = {*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC}
"""Start of frame: JPEG without the tables DHT and DAC and the reserved JPG; JPEG-LS."""
_LOSSLESS = (0xFFC3, 0xFFC7, 0xFFCB, 0xFFCF)

_J2K_START, _J2K_SIZE, _J2K_TILE_PART, _J2K_END = b"\xff\x4f", b"\xff\x51", b"\xff\x90", b"\xff\xd9"
_JP2_SIGNATURE = b"\0\0\0\x0cjP  "


def require_whole_codestream(frame: bytes, shape_yx: tuple[int, int], where: str) -> None:
    """Raise unless `frame` is one whole codestream of one component of `shape_yx` pixels.

    Raises:
        ScanError: If it is truncated, has another size, more follows it, or it is of another kind.
    """
    try:
        if frame.startswith(b"\xff\xd8"):
            found, fault = _inspect_jpeg(frame, shape_yx)
        elif frame.startswith((_J2K_START, _JP2_SIGNATURE)):
            found, fault = _inspect_jpeg2000(frame)
        else:
            found, fault = None, "are of an unusual compression"
    except (struct.error, ValueError, IndexError):
        found, fault = None, "have a damaged header"
    if not fault and found != (*shape_yx, 1):
        fault = f"have {found} rows, columns and components where {(*shape_yx, 1)} are expected"
    if fault:
        raise ScanError(f"{where}: its compressed pixels {fault}; export the series again")


def _inspect_jpeg(
    frame: bytes, shape_yx: tuple[int, int]
) -> tuple[tuple[int, int, int] | None, str]:
    """Return rows, columns and components, and what is wrong; empty if nothing is."""
    size, is_lossless = None, False
    for marker, at in _jpeg_segments(frame):
        if marker in _FRAMES:
            _, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 2)
            size, is_lossless = (rows, columns, components), marker in _LOSSLESS
        if marker == _SCAN:
            end = frame.find(b"\xff\xd9", at)
            if end < 0:
                return size, "are truncated"
            if frame[end + 2 :].strip(b"\0\xff"):
                return size, "are followed by other data"
            # A code has one bit at least; a lossless frame has a code for every pixel.
            if is_lossless and (end - at) * 8 < shape_yx[0] * shape_yx[1]:
                return size, "are truncated"
            return size, ""
    return size, "are truncated"


def _jpeg_segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker before the coded data, and where its segment starts."""
    at = 2
    while at + 4 <= len(frame):
        if frame[at + 1] == 0xFF:  # fill byte
            at += 1
            continue
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker < 0xFF00 or length < 2:
            raise ValueError
        yield marker, at + 2
        at += 2 + length


def _inspect_jpeg2000(frame: bytes) -> tuple[tuple[int, int, int] | None, str]:
    """Return rows, columns and components, and what is wrong; empty if nothing is."""
    start = frame.find(_J2K_START + _J2K_SIZE)
    _, _, right, bottom, left, top, tile_x, tile_y, tile_left, tile_top, components = (
        struct.unpack_from(">HH8IH", frame, start + 4)
    )
    size = (bottom - top, right - left, components)
    if start < 0 or not tile_x or not tile_y:
        raise ValueError
    tiles = -((tile_left - right) // tile_x) * -((tile_top - bottom) // tile_y)
    at = start + 2
    while frame[at : at + 2] != _J2K_TILE_PART:
        (length,) = struct.unpack_from(">H", frame, at + 2)
        at += 2 + max(length, 2)
    seen = set()
    while frame[at : at + 2] == _J2K_TILE_PART:
        tile, length = struct.unpack_from(">HI", frame, at + 4)
        end = at + length if length else frame.rfind(_J2K_END)
        if end <= at or end > len(frame):
            return size, "are truncated"
        seen.add(tile)
        at = end
    if frame[at : at + 2] not in (_J2K_END, b"") or len(seen) != tiles:
        return size, "are truncated"
    is_file = start > 0  # boxes may follow the codestream in a JP2 file
    if frame[at + 2 :].strip(b"\0\xff") and not is_file:
        return size, "are followed by other data"
    return size, ""
