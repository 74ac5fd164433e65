"""Tasks of reader processes (`lib.isolation`): a CT, a label volume, and several in one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.imaging.dicom_series import series_slices
from lib.imaging.geometry import Grid
from lib.imaging.nrrd_layers import parse_layers
from lib.imaging.scans import (
    CT_DTYPE,
    LABEL_DTYPE,
    UNCHECKED,
    label_errors,
    parse_ct,
    parse_label,
    require_grid,
    require_volume,
)
from lib.imaging.volume_reading import opened, read_sample_header, read_volume_header
from lib.imaging.voxel_data import fill_parts
from lib.isolation.array_transfer import Array, ArrayStream

_Result = tuple[Mapping[str, Any], Array | None]


def warm_up() -> None:
    """Use what reading of any file uses, before the file is known (`lib.isolation.reader.warm_up`)."""
    read_sample_header()


def ct(arguments: Mapping[str, Any], stream: ArrayStream, /) -> _Result:
    """Return what `lib.imaging.scans.read_ct` needs: the grid and the voxels, converted if they must be."""
    path, case = Path(arguments["path"]), arguments["case"]
    sent = (_sent_series if path.is_dir() else _sent_volume)(path, case, stream)
    if sent is not None:
        return sent, None
    found = parse_ct(path, case)
    return found.grid.as_json(), found.array_hu


def _sent_volume(path: Path, case: str, stream: ArrayStream) -> dict[str, Any] | None:
    """Send the voxels of a file and return the result; None if they need a conversion."""
    with opened(path, case) as file:
        header = read_volume_header(file, path, case)
        require_volume(case, header.grid)
        if not header.has_plain(CT_DTYPE):
            return None
        stream.begin(header.grid.shape_vox, CT_DTYPE)
        fill_parts(stream.parts(), header.layout, file, case)
    return {**header.grid.as_json(), UNCHECKED: True}


def _sent_series(path: Path, case: str, stream: ArrayStream) -> dict[str, Any] | None:
    """Send the slices of a series and return the result; None if their HU are not all int16."""
    slices, grid = series_slices(path, image_id=case)
    require_volume(case, grid)
    stream.begin(grid.shape_vox, CT_DTYPE)
    for slice_yx in slices:
        if slice_yx.dtype != CT_DTYPE:
            return None
        stream.write(slice_yx)
    return {**grid.as_json(), UNCHECKED: True}


def label(arguments: Mapping[str, Any], stream: ArrayStream, /) -> _Result:
    """Return what `lib.imaging.scans.read_label` needs: the grid and the voxels."""
    path, case, expected = Path(arguments["path"]), arguments["case"], arguments["image_grid"]
    image_grid = None if expected is None else Grid.from_json(expected)
    with label_errors(), opened(path, case) as file:
        header = read_volume_header(file, path, case)
        if header.has_plain(LABEL_DTYPE):
            require_grid(header.grid, image_grid, case)
            stream.begin(header.grid.shape_vox, LABEL_DTYPE)
            fill_parts(stream.parts(), header.layout, file, case)
            return header.grid.as_json(), None
    array, grid = parse_label(
        path, image_id=case, image_grid=image_grid, integers_only=arguments["integers_only"]
    )
    return grid.as_json(), array


def layers(arguments: Mapping[str, Any], _stream: ArrayStream, /) -> _Result:
    """Return the grid and the voxels `(X, Y, Z, L)` of `lib.imaging.nrrd_layers.read_layers`."""
    expected = arguments["image_grid"]
    array, grid = parse_layers(
        Path(arguments["path"]),
        image_id=arguments["case"],
        image_grid=None if expected is None else Grid.from_json(expected),
    )
    return grid.as_json(), array
