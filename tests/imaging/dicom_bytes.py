"""DICOM files built byte by byte (PS3.5 section 7, PS3.10 section 7), independent of pydicom's writer."""

import struct
import zlib
from pathlib import Path

EXPLICIT = b"1.2.840.10008.1.2.1"
DEFLATED = b"1.2.840.10008.1.2.1.99"
UNDEFINED = 0xFFFFFFFF
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Return a data element, Explicit VR Little Endian; `length` replaces that of the value."""
    value += (b"\0" if vr in (b"UI", b"OB") else b" ") * (len(value) % 2)
    size = len(value) if length is None else length
    form = "<HH2sHI" if vr in _LONG else "<HH2sH"
    parts = (group, number, vr, 0, size) if vr in _LONG else (group, number, vr, size)
    return struct.pack(form, *parts) + value


def item(value: bytes = b"", length: int | None = None) -> bytes:
    """Return a sequence item; `length` replaces that of its content."""
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value) if length is None else length) + value


def write_file(path: Path, dataset: bytes, transfer_syntax: bytes = EXPLICIT) -> Path:
    """Write a DICOM file; the data set is deflated if the transfer syntax says so."""
    if transfer_syntax == DEFLATED:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        dataset = deflater.compress(dataset) + deflater.flush()
        dataset += b"\0" * (len(dataset) % 2)
    meta = element(2, 0x10, b"UI", transfer_syntax)
    path.write_bytes(
        bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + dataset
    )
    return path
