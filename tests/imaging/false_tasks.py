"""Tasks of readers that do not send what they state."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lib.imaging.geometry import Grid
from lib.imaging.scans import UNCHECKED
from lib.isolation.array_transfer import Array, ArrayStream

_Result = tuple[Mapping[str, Any], Array | None]

_RESULT = {
    **Grid((9, 9, 9), ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0))).as_json(),
    UNCHECKED: True,
}


def bytes_as_ct(_arguments: Mapping[str, Any], _stream: ArrayStream, /) -> _Result:
    """Return voxels that cannot be those of a CT."""
    return _RESULT, np.arange(729, dtype=np.uint32).reshape(9, 9, 9)


def no_array(_arguments: Mapping[str, Any], _stream: ArrayStream, /) -> _Result:
    """Return no voxels."""
    return _RESULT, None


def another_shape(_arguments: Mapping[str, Any], _stream: ArrayStream, /) -> _Result:
    """Return fewer voxels than the grid has."""
    return _RESULT, np.arange(648, dtype=np.int16).reshape(9, 9, 8)
