"""Reader of NRRD files with several label volumes on one grid.

3D Slicer and MITK save overlapping segments in such layers. ITK reads them as the components of a vector image.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import GeometryError, LabelError, ReaderStoppedError, ScanError
from lib.imaging.geometry import Grid, ras_to_lps, require_right_angles, require_same_grid
from lib.imaging.quantities import LabelArray
from lib.imaging.segments import header_fields
from lib.imaging.volume_headers import MAX_HEADER_BYTES, nrrd_layout
from lib.imaging.voxel_data import fill
from lib.isolation.reader_pool import readers

_TASK = "lib.imaging.reader_tasks:layers"
_LAYER_KINDS = ("list", "vector", "point", "covariant-vector", "none", "???")
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
"""Anatomical space of an NRRD file -> signs of its axes in LPS."""


def has_layers(path: Path) -> bool:
    """Return whether a file is an NRRD file with layers along the first of its four axes."""
    with path.open("rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    if not start.startswith(b"NRRD"):
        return False
    fields = header_fields(start)
    first = (fields.get("kinds", "").lower().split() or ["none"])[0]
    return fields.get("dimension") == "4" and first in _LAYER_KINDS


def read_layers(
    path: Path, *, image_id: str, image_grid: Grid | None
) -> tuple[list[LabelArray], Grid]:
    """Return the label volumes of an NRRD file for which `has_layers` holds, each `(X, Y, Z)`, and their grid.

    The file is read in a process of its own (`lib.isolation`).

    Args:
        path: The file.
        image_id: Id of the labelled image, for messages.
        image_grid: Grid of that image; None to accept any grid.

    Raises:
        LabelError: If the file is damaged, or holds other voxels than whole numbers from 0 to 255, or if the
            process that reads it died.
        GeometryError: If its grid is not the image's.
    """
    arguments = {
        "path": str(path.absolute()),
        "case": image_id,
        "image_grid": None if image_grid is None else image_grid.as_json(),
    }
    try:
        grid, array = readers().run(_TASK, arguments, path=path, case=image_id)
    except ReaderStoppedError as error:
        raise LabelError(str(error)) from error
    if array is None or array.ndim != 4:
        raise LabelError(f"{image_id}: the reader of the file gave no layers; save it again")
    return [np.asarray(array[..., n]) for n in range(array.shape[3])], Grid.from_json(grid)


def parse_layers(
    path: Path, *, image_id: str, image_grid: Grid | None
) -> tuple["np.ndarray[Any, np.dtype[np.uint8]]", Grid]:
    """Return the layers `(X, Y, Z, L)` and their grid as `read_layers` does, but read in this process."""
    with path.open("rb") as file:
        start = file.read(MAX_HEADER_BYTES)
        try:
            layout = nrrd_layout(start, image_id)
            grid = _grid(header_fields(start), layout.sizes, image_id)
            require_right_angles(image_id, grid)
            if image_grid is not None:
                require_same_grid(image_id, label=grid, image=image_grid)
            if not np.issubdtype(layout.dtype, np.integer):
                raise LabelError(
                    f"{image_id}: the layers hold {layout.dtype.name} numbers; whole numbers expected: save "
                    "the segmentation again"
                )
            array: np.ndarray[Any, np.dtype[Any]] = np.zeros(
                layout.sizes, layout.dtype.newbyteorder("="), order="F"
            )
            file.seek(0)
            fill(array, layout, file, image_id)
        except GeometryError:
            raise
        except ScanError as error:
            raise LabelError(str(error)) from error
        except (EOFError, zlib.error) as error:
            raise LabelError(
                f"{image_id}: the NRRD file is truncated or damaged ({error}); copy it again"
            ) from error
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise LabelError(
            f"{image_id}: label values run from {low} to {high}; 0 to 255 expected: is it an image?"
        )
    return np.asfortranarray(np.moveaxis(array, 0, -1), np.uint8), grid


def _grid(fields: Mapping[str, str], sizes: tuple[int, ...], image_id: str) -> Grid:
    """Return the grid of the layers, by the fields of the header."""
    try:
        _, x, y, z = sizes
        first, *axes = fields["space directions"].split()
        if first != "none":
            raise ValueError(f"space directions {first[:40]}")
        affine = np.eye(4)
        affine[:3, :3] = np.array([_numbers(axis) for axis in axes]).T
        affine[:3, 3] = _numbers(fields["space origin"])
        affine[:3] *= np.array(_TO_LPS[fields["space"].lower()])[:, None]
    except (KeyError, ValueError) as error:
        raise LabelError(
            f"{image_id}: the grid of the layers cannot be read ({error}); 3D volumes with directions and an "
            "origin expected: save the segmentation again"
        ) from error
    return Grid.from_affine((x, y, z), np.asarray(ras_to_lps(affine)))


def _numbers(vector: str) -> list[float]:
    x, y, z = (float(number) for number in vector.strip("() ").split(","))
    return [x, y, z]
