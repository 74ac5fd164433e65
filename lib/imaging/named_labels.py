"""Label volumes of files that name their segments themselves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import LabelError
from lib.imaging.geometry import Grid, padded_onto
from lib.imaging.nrrd_layers import has_layers, read_layers
from lib.imaging.quantities import LabelArray, MaskArray
from lib.imaging.scans import read_label
from lib.imaging.segments import cropped_shape, named_segments
from lib.imaging.volume_headers import MAX_VOXELS

LayerValue = tuple[int, int]
"""Number of a layer, and a value in it."""


@dataclass(frozen=True, slots=True)
class NamedLabel:
    """A label file that names its segments.

    Attributes:
        layers: Label volumes, each `(X, Y, Z)`; segments of different layers can overlap.
        grid: Position of the voxels.
        present: Layer and value -> name, of each segment that has a voxel.
        listed: Names of all segments, with or without voxels, in the order of the file.
        changes: A sentence if the file held a part of the grid only.
    """

    layers: tuple[LabelArray, ...]
    grid: Grid
    present: Mapping[LayerValue, str]
    listed: tuple[str, ...]
    changes: tuple[str, ...] = ()

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
    whole = _whole_grid(path, image_grid)
    file_grid = image_grid if whole is None else None
    if is_layered:
        layers, grid = read_layers(path, image_id=image_id, image_grid=file_grid)
    else:
        array, grid = read_label(
            path, image_id=image_id, image_grid=file_grid, integers_only=integers_only
        )
        layers = [array]
    missing = [s.name for s in segments if not 0 <= s.layer < len(layers)]
    if missing:
        raise LabelError(
            f"{image_id}: the file names a layer of {missing[0]!r} that it does not hold; it holds "
            f"{len(layers)}: export it again"
        )
    changes = []
    if whole is not None:
        if len(layers) * math.prod(whole.shape_vox) > MAX_VOXELS:
            raise LabelError(
                f"{image_id}: {len(layers)} layers on the image's grid exceed {MAX_VOXELS} voxels; save the "
                "organs alone, in fewer layers"
            )
        sides = " x ".join(map(str, grid.shape_vox))
        changes.append(
            f"the file holds a part of {sides} voxels; the rest was stored as background"
        )
        layers = [padded_onto(layer, grid, whole, image_id=image_id) for layer in layers]
        grid = whole
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
        changes=tuple(changes),
    )


def _whole_grid(path: Path, image_grid: Grid | None) -> Grid | None:
    """Return the image's grid if the file is a segmentation that 3D Slicer cropped, else None."""
    shape = cropped_shape(path)
    if image_grid is None or shape is None or shape == image_grid.shape_vox:
        return None
    # A part is smaller; anything else is refused by its header, before it is unpacked.
    is_part = all(a <= b for a, b in zip(shape, image_grid.shape_vox, strict=True))
    return image_grid if is_part else None
