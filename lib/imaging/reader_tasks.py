"""Tasks of reader processes (`lib.isolation`): a CT, a label volume, and several in one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.imaging.geometry import Grid
from lib.imaging.nrrd_layers import parse_layers
from lib.imaging.scans import parse_ct, parse_label
from lib.isolation.array_transfer import Array

_Result = tuple[Mapping[str, Any], Array]


def ct(arguments: Mapping[str, Any], /) -> _Result:
    """Return the grid and the voxels of `lib.imaging.scans.read_ct`."""
    found = parse_ct(Path(arguments["path"]), arguments["case"])
    return found.grid.as_json(), found.array_hu


def label(arguments: Mapping[str, Any], /) -> _Result:
    """Return the grid and the voxels of `lib.imaging.scans.read_label`."""
    expected = arguments["image_grid"]
    array, grid = parse_label(
        Path(arguments["path"]),
        image_id=arguments["case"],
        image_grid=None if expected is None else Grid.from_json(expected),
        integers_only=arguments["integers_only"],
    )
    return grid.as_json(), array


def layers(arguments: Mapping[str, Any], /) -> _Result:
    """Return the grid and the voxels `(X, Y, Z, L)` of `lib.imaging.nrrd_layers.read_layers`."""
    expected = arguments["image_grid"]
    array, grid = parse_layers(
        Path(arguments["path"]),
        image_id=arguments["case"],
        image_grid=None if expected is None else Grid.from_json(expected),
    )
    return grid.as_json(), array
