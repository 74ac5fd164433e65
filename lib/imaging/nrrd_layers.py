"""Reader of NRRD files with several label volumes on one grid.

3D Slicer and MITK save overlapping segments in such layers, which ITK reads as the components of a vector
image. Here the header is parsed as text, and zlib unpacks the data up to the size that the header states.
"""

import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lib.errors import GeometryError, LabelError, ScanError
from lib.imaging.geometry import Grid, ras_to_lps, require_right_angles, require_same_grid
from lib.imaging.quantities import FloatArray, LabelArray
from lib.imaging.segments import HEADER_BYTES, header_fields
from lib.imaging.volume_headers import MAX_VOXELS

_LAYER_KINDS = ("list", "vector", "point", "covariant-vector", "none", "???")
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
"""Anatomical space of an NRRD file -> signs of its axes in LPS."""
_TYPES = {
    "u1": ("unsigned char", "uchar", "uint8", "uint8_t"),
    "i1": ("signed char", "int8", "int8_t"),
    "u2": ("unsigned short", "ushort", "uint16", "uint16_t", "unsigned short int"),
    "i2": ("short", "int16", "int16_t", "short int", "signed short"),
    "u4": ("unsigned int", "uint", "uint32", "uint32_t"),
    "i4": ("int", "int32", "int32_t", "signed int"),
}
"""numpy type -> its names in NRRD (teem.sourceforge.net/nrrd/format.html)."""
_VECTOR = re.compile(r"\(([^()]*)\)")


def has_layers(path: Path) -> bool:
    """Return whether a file is an NRRD file with the layers along its first axis."""
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if not start.startswith(b"NRRD"):
        return False
    fields = header_fields(start)
    kinds = fields.get("kinds", "none").lower().split()
    return fields.get("dimension") == "4" and kinds[:1] != ["domain"] and kinds[0] in _LAYER_KINDS


def read_layers(path: Path, *, image_id: str, image_grid: Grid | None) -> list[LabelArray]:
    """Return the label volumes of an NRRD file for which `has_layers` holds, each `(X, Y, Z)`.

    Args:
        path: The file.
        image_id: Id of the labelled image, for messages.
        image_grid: Grid of that image; None to accept any grid.

    Raises:
        LabelError: If the file is damaged, or holds other voxels than whole numbers from 0 to 255.
        GeometryError: If its grid is not the image's.
    """
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    try:
        fields = header_fields(start)
        count, *sides = (int(n) for n in fields["sizes"].split())
        x, y, z = sides
        grid = Grid.from_affine((x, y, z), _affine_ras(fields, image_id))
        name = next(k for k, names in _TYPES.items() if fields["type"].lower() in names)
        order = "<" if fields.get("endian", "little").lower() == "little" else ">"
    except ScanError:
        raise
    except (KeyError, ValueError, StopIteration) as error:
        raise LabelError(
            f"{image_id}: the header of the NRRD file with layers cannot be read ({error!r}); whole "
            "numbers on one 3D grid expected: save the segmentation again"
        ) from error
    if min(count, x, y, z) < 1 or count * math.prod((x, y, z)) > MAX_VOXELS:
        raise LabelError(
            f"{image_id}: the file has {count} layers of {x} x {y} x {z} voxels; at most {MAX_VOXELS} voxels "
            "expected"
        )
    if image_grid is not None:
        require_same_grid(image_id, label=grid, image=image_grid)
    require_right_angles(image_id, grid)
    dtype = np.dtype(order + name)
    content = _content(path, start, fields, dtype.itemsize * count * math.prod((x, y, z)), image_id)
    array = np.frombuffer(content, dtype).reshape((count, x, y, z), order="F")
    if array.min() < 0 or array.max() > 255:
        raise LabelError(
            f"{image_id}: label values run from {array.min()} to {array.max()}; 0 to 255 expected"
        )
    return [np.ascontiguousarray(layer, np.uint8) for layer in array]


def _affine_ras(fields: Mapping[str, str], image_id: str) -> FloatArray:
    space = fields.get("space", "none").lower()
    if space not in _TO_LPS:
        raise GeometryError(
            f"{image_id}: the NRRD file has no orientation (space: {space[:40]}), so that left and right are "
            "unknown; left-posterior-superior expected: export it again with its orientation"
        )
    units = fields.get("space units", "")
    if set(units.split('"')[1::2]) - {"mm", ""}:
        raise GeometryError(f"{image_id}: lengths are in {units}; mm expected: convert the file")
    axes = [_numbers(v) for v in _VECTOR.findall(fields["space directions"])]
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes).T
    affine[:3, 3] = _numbers(fields["space origin"].strip("() "))
    affine[:3] *= np.array(_TO_LPS[space])[:, None]
    return np.asarray(ras_to_lps(affine))


def _numbers(text: str) -> list[float]:
    x, y, z = (float(number) for number in text.split(","))
    return [x, y, z]


def _content(
    path: Path, start: bytes, fields: Mapping[str, str], size: int, image_id: str
) -> bytes:
    """Return the unpacked data of `size` bytes; more are not unpacked."""
    encoding = fields.get("encoding", "").lower()
    data_at = min(
        (at + len(end) for end in (b"\n\n", b"\r\n\r\n") if (at := start.find(end)) >= 0),
        default=-1,
    )
    if "data file" in fields or "datafile" in fields or data_at < 0:
        raise LabelError(
            f"{image_id}: the NRRD file does not contain its data; save it as one file"
        )
    with path.open("rb") as file:
        file.seek(data_at)
        packed = file.read()
    try:
        if encoding in ("gzip", "gz"):
            content = zlib.decompressobj(wbits=47).decompress(packed, size)
        elif encoding == "raw":
            content = packed[:size]
        else:
            raise LabelError(
                f"{image_id}: the NRRD file is encoded as {encoding[:20]!r}; gzip or raw expected: save it "
                "again"
            )
    except zlib.error as error:
        raise LabelError(
            f"{image_id}: the NRRD file is damaged ({error}); save it again"
        ) from error
    if len(content) < size:
        raise LabelError(
            f"{image_id}: the NRRD file is truncated: {len(content)} of {size} bytes; copy it again"
        )
    return content
