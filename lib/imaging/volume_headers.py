"""Headers of NRRD and MetaImage files: checks before ITK parses them, and where and how the voxels lie.

ITK ends the process on some damaged headers, ignores unknown spaces, follows a header to any other file, and
returns uninitialised memory for missing voxels. So the fields that matter are read here first, and the voxels
are read by `lib.imaging.voxel_data`.

Formats: teem.sourceforge.net/nrrd/format.html; itk.org/Wiki/ITK/MetaIO/Documentation.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lib.errors import GeometryError, ScanError

MAX_VOXELS = 2**30
"""Largest number of voxels (1024 x 1024 x 1024); a file with more is damaged or built to exhaust memory."""
MAX_DIMENSIONS = 5
"""Largest number of axes: three, and others of length 1 or of components, which get a message of their own."""
MAX_HEADER_BYTES = 2**20

_NRRD_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras",
                "left-anterior-superior", "las")  # fmt: skip
_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int",
           "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
_MHA_TYPES = {"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
              "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4",
              "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
              "MET_DOUBLE": "f8"}  # fmt: skip
_ENCODINGS: dict[str, Literal["raw", "deflated", "text", "hex"]] = {
    "raw": "raw", "gzip": "deflated", "gz": "deflated", "ascii": "text", "text": "text",
    "txt": "text", "hex": "hex",
}  # fmt: skip
_AT_END = -1
"""Value of the skip fields of both formats: the voxels are the last bytes of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VoxelLayout:
    """Where and how the voxels of a file are stored; the first axis is the fastest."""

    sizes: tuple[int, ...]
    """Length of each axis, in the order of the file."""
    dtype: "np.dtype[Any]"
    """Type of a stored number, with its byte order."""
    encoding: Literal["raw", "deflated", "text", "hex"]
    """`deflated`: zlib or gzip."""
    offset: int
    """Position of the first byte of the voxels in the file; -1: they are its last bytes."""
    skipped_lines: int = 0
    """Lines between `offset` and the voxels."""
    skipped_bytes: int = 0
    """Bytes between these lines and the voxels; inside the compressed data if there is any."""

    @property
    def size_bytes(self) -> int:
        """Size of the unpacked voxels."""
        return math.prod(self.sizes) * self.dtype.itemsize


def nrrd_layout(start: bytes, case: str) -> VoxelLayout:
    """Return the layout of an NRRD file, given its beginning.

    Raises:
        ScanError: If the header is damaged, or the file does not contain its voxels.
        GeometryError: If it does not state an anatomical space in mm.
    """
    if not start.startswith(b"NRRD"):
        raise ScanError(f"{case}: not an NRRD file: it does not begin with NRRD; export it again")
    ends = [(at, end) for end in (b"\n\n", b"\r\n\r\n") if (at := start.find(end)) >= 0]
    at, end = min(ends, default=(len(start), b""))
    fields: dict[str, str] = {}
    for line in start[:at].decode("latin-1").splitlines():
        key, separator, value = line.partition(":")
        if separator and not value.startswith("=") and not line.startswith("#"):
            fields.setdefault(key.strip().lower(), value.strip())
    if "data file" in fields or "datafile" in fields or not end:
        raise ScanError(f"{case}: the NRRD file does not contain its data; save it as one file")
    space = fields.get("space", "none").lower()
    if space not in _NRRD_SPACES:
        raise GeometryError(
            f"{case}: the NRRD file has no orientation (space: {space[:40]}), so that left and right are "
            "unknown; left-posterior-superior expected: export it again with its orientation"
        )
    units = fields.get("space units", "")
    if set(units.split('"')[1::2]) - {"mm", ""}:
        raise GeometryError(f"{case}: lengths are in {units[:40]}; mm expected: convert the file")
    named = fields.get("type", "").lower()
    dtype = next((name for name, names in _NRRD_TYPES.items() if named in names), None)
    encoding = _ENCODINGS.get(fields.get("encoding", "").lower())
    if dtype is None or encoding is None:
        raise ScanError(
            f"{case}: the NRRD file stores {fields.get('type', 'no type')[:40]!r}, encoded as "
            f"{fields.get('encoding', 'nothing')[:40]!r}; numbers, raw or gzip, expected: save it again"
        )
    is_big = fields.get("endian", "little").lower() == "big"
    skipped = [
        _skip(fields, *keys, case=case)
        for keys in (("line skip", "lineskip"), ("byte skip", "byteskip"))
    ]
    is_last = skipped[1] == _AT_END and encoding == "raw"
    return VoxelLayout(
        sizes=_sizes(fields.get("dimension"), fields.get("sizes"), case),
        dtype=np.dtype(f"{'>' if is_big else '<'}{dtype}"),
        encoding=encoding,
        offset=_AT_END if is_last else at + len(end),
        skipped_lines=max(0, skipped[0]),
        skipped_bytes=max(0, skipped[1]),
    )


def mha_layout(start: bytes, case: str) -> VoxelLayout:
    """Return the layout of a MetaImage file, given its beginning.

    Raises:
        ScanError: If the header is damaged, or the file does not contain its voxels.
        GeometryError: If it does not state directions and spacing.
    """
    fields: dict[str, str] = {}
    position = 0
    for line in start.split(b"\n"):
        key, _, value = line.decode("latin-1").partition("=")
        fields[key.strip()] = value.strip()
        position += len(line) + 1
        if key.strip() == "ElementDataFile":
            break
    if fields.get("ElementDataFile") != "LOCAL":
        raise ScanError(
            f"{case}: the MetaImage file does not contain its data; save it as one file"
        )
    if "ElementSpacing" not in fields or not fields.keys() & {
        "TransformMatrix",
        "Orientation",
        "Rotation",
    }:
        raise GeometryError(
            f"{case}: the MetaImage file has no orientation (TransformMatrix, ElementSpacing), so that left "
            "and right are unknown; export it again with its orientation"
        )
    named = fields.get("ElementType", "")
    if named.endswith("_ARRAY") or fields.get("ElementNumberOfChannels", "1") != "1":
        raise ScanError(
            f"{case}: the voxels are colours, vectors or complex numbers; one number each expected"
        )
    if named not in _MHA_TYPES:
        raise ScanError(
            f"{case}: the MetaImage file stores {named[:40] or 'no type'!r}; one of "
            f"{', '.join(_MHA_TYPES)} expected: save it again"
        )
    is_big = _is_true(fields, "BinaryDataByteOrderMSB") or _is_true(fields, "ElementByteOrderMSB")
    encoding: Literal["raw", "deflated", "text"] = "text"
    if _is_true(fields, "BinaryData"):
        encoding = "deflated" if _is_true(fields, "CompressedData") else "raw"
    header_size = _skip(fields, "HeaderSize", case=case)
    return VoxelLayout(
        sizes=_sizes(fields.get("NDims"), fields.get("DimSize"), case),
        dtype=np.dtype(f"{'>' if is_big else '<'}{_MHA_TYPES[named]}"),
        encoding=encoding,
        offset=header_size if header_size and encoding != "text" else position,
    )


def _is_true(fields: Mapping[str, str], key: str) -> bool:
    return fields.get(key, "")[:1] in ("T", "t", "1")


def _sizes(dimension: str | None, sizes: str | None, case: str) -> tuple[int, ...]:
    """Return the lengths of the axes, if they are as many as `dimension` says, and not too long."""
    try:
        count = int(dimension or "")
        lengths = tuple(int(size) for size in (sizes or "").split())
    except ValueError:
        count, lengths = 0, ()
    if not 1 <= count <= MAX_DIMENSIONS or len(lengths) != count:
        raise ScanError(
            f"{case}: the header states {str(dimension)[:20]} axes of the lengths {str(sizes)[:60]}; one 3D "
            "volume expected: the file is damaged, export it again"
        )
    if min(lengths) < 1 or math.prod(lengths) > MAX_VOXELS:
        raise ScanError(
            f"{case}: {count} dimensions, {' x '.join(map(str, lengths))} voxels; one 3D volume of at most "
            f"{MAX_VOXELS} voxels expected: export it again"
        )
    return lengths


def _skip(fields: Mapping[str, str], *keys: str, case: str) -> int:
    text = next((fields[key] for key in keys if key in fields), "0")
    try:
        number = int(text)
    except ValueError:
        number = _AT_END - 1
    if number < _AT_END:
        raise ScanError(
            f"{case}: {keys[0]} is {text[:20]!r}, which is no position; the file is damaged: export it again"
        )
    return number
