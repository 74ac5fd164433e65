"""Exchange of voxels between a reader process and the server (`lib.isolation`).

Voxels that need no conversion take the shortest way. The reader unpacks compressed ones into the stream, piece
by piece, while the server receives them. Where they lie in the file as they are, the reader only checks the
header and tells the position; the server copies these bytes from the file, which parses nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lib.errors import ReaderStoppedError, ScanError
from lib.imaging.geometry import Grid
from lib.imaging.volume_headers import VoxelLayout
from lib.imaging.volume_reading import VolumeHeader, opened
from lib.imaging.voxel_data import fill, fill_parts, go_to_voxels
from lib.isolation.array_transfer import Array, ArrayStream

IN_FILE = "in_file"
"""Key of a reader's result: where in the file the voxels lie; missing if they come through the stream."""


def send_voxels(
    file: BinaryIO, header: VolumeHeader, dtype: "np.dtype[Any]", stream: ArrayStream, case: str
) -> dict[str, Any]:
    """Send the voxels of a file for whose header `has_plain(dtype)` holds; return what `received` needs.

    Args:
        file: From `lib.imaging.volume_reading.opened`.
        header: Its header.
        dtype: Type of the voxels.
        stream: For the voxels.
        case: For messages.

    Raises:
        ScanError: If the file holds fewer or more voxels; `EOFError` and `zlib.error` if it is damaged.
    """
    if header.layout.encoding == "raw":
        go_to_voxels(header.layout, file, case)
        return {IN_FILE: {"position": file.tell(), "state": _state(file)}}
    stream.begin(header.grid.shape_vox, dtype)
    fill_parts(stream.parts(), header.layout, file, case)
    return {}


def received(
    result: Mapping[str, Any],
    array: Array | None,
    *,
    path: Path,
    grid: Grid,
    dtype: "np.dtype[Any]",
    case: str,
) -> Array:
    """Return the voxels `(X, Y, Z)` that a reader sent, or whose position it told.

    Args:
        result: Result of the reader, which is not trusted.
        array: The voxels that came through the stream; None if none came.
        path: The file.
        grid: Its grid.
        dtype: Type of the voxels if they are in the file.
        case: For messages.

    Raises:
        ScanError: If the file is truncated, or changed since the reader saw it.
        ReaderStoppedError: If the reader gave no volume.
    """
    place = result.get(IN_FILE)
    if array is None and isinstance(place, dict) and type(place.get("position")) is int:
        return _copied(place, path, grid, dtype, case)
    if array is None or array.shape != grid.shape_vox:
        raise ReaderStoppedError(
            f"{case}: the reader of {path.name} gave no volume; export it again"
        )
    return array


def _copied(
    place: Mapping[str, Any], path: Path, grid: Grid, dtype: "np.dtype[Any]", case: str
) -> Array:
    layout = VoxelLayout(
        sizes=grid.shape_vox, dtype=dtype, encoding="raw", offset=max(0, place["position"])
    )
    array: Array = np.zeros(grid.shape_vox, dtype, order="F")
    with opened(path, case) as file:
        before = _state(file)
        fill(array, layout, file, case)
        if not place.get("state") == before == _state(file):
            raise ScanError(f"{case}: {path.name} changed while it was read; read it again")
    return array


def _state(file: BinaryIO) -> list[int]:
    """Return what changes when another file takes the place of this one, or when it is written to."""
    status = os.fstat(file.fileno())
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
