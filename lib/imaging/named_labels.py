"""Label volumes of files that name their segments themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import LabelError
from lib.imaging.geometry import Grid
from lib.imaging.nrrd_layers import has_layers, read_layers
from lib.imaging.quantities import LabelArray, MaskArray
from lib.imaging.scans import read_label
from lib.imaging.segments import named_segments

Place = tuple[int, int]
"""Number of a layer, and a value in it."""


@dataclass(frozen=True, slots=True)
class NamedLabel:
    """A label file that names its segments.

    Attributes:
        layers: Label volumes, each `(X, Y, Z)`; segments of different layers can overlap.
        grid: Position of the voxels.
        present: Layer and value -> name, of each segment that has a voxel.
        listed: Names of all segments, with or without voxels, in the order of the file.
    """

    layers: tuple[LabelArray, ...]
    grid: Grid
    present: Mapping[Place, str]
    listed: tuple[str, ...]

    def masks(self, image_id: str) -> dict[str, MaskArray]:
        """Return name -> mask of each segment that has a voxel.

        Raises:
            LabelError: If two of them have one name.
        """
        masks: dict[str, MaskArray] = {}
        for (layer, value), name in self.present.items():
            if name in masks:
                raise LabelError(
                    f"{image_id}: two segments are called {name!r}; join them or rename one"
                )
            masks[name] = self.layers[layer] == value
        return masks


def read_named_label(
    path: Path, *, image_id: str, image_grid: Grid | None, integers_only: bool = False
) -> NamedLabel | None:
    """Return the label in a file by the names in the file; None if the file names no segments.

    Args:
        path: A file with one of `lib.imaging.formats.SCAN_SUFFIXES`.
        image_id: Id of the labelled image, for messages.
        image_grid: Grid of that image; None to accept any grid.
        integers_only: As in `lib.imaging.scans.read_label`.

    Raises:
        LabelError: If the names are contradictory, a voxel's value has no name, or the file is no label.
        GeometryError: If its grid is not the image's.
    """
    segments = named_segments(path, image_id)
    is_layered = has_layers(path)
    if not segments:
        if is_layered:
            raise LabelError(
                f"{image_id}: the file has several layers and does not name its segments; save it as "
                "3D Slicer's .seg.nrrd, or as one label volume"
            )
        return None
    if is_layered:
        layers, grid = read_layers(path, image_id=image_id, image_grid=image_grid)
    else:
        array, grid = read_label(
            path, image_id=image_id, image_grid=image_grid, integers_only=integers_only
        )
        layers = [array]
    names = {(s.layer, s.value): s.name for s in segments}
    places = [
        (number, int(value))
        for number, layer in enumerate(layers)
        for value in np.flatnonzero(np.bincount(layer.ravel(order="K"), minlength=256))
        if value
    ]
    unnamed = sorted({value for number, value in places if (number, value) not in names})
    if unnamed:
        known = {s.name: s.value for s in segments[:20]}
        raise LabelError(
            f"{image_id}: the label holds the values {unnamed}, which the file does not name; it names "
            f"{known}: export it again"
        )
    return NamedLabel(
        layers=tuple(layers),
        grid=grid,
        present={place: names[place] for place in places},
        listed=tuple(segment.name for segment in segments),
    )
