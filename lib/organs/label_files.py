"""Label files read as organs, by the names in the file where it has names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lib.errors import LabelError
from lib.imaging.geometry import Grid
from lib.imaging.named_labels import LayerValue, read_named_label
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_label
from lib.imaging.volumes import LabelVolume, combine_masks
from lib.organs.changes import dropped, listed, moved, overlapping, renamed
from lib.organs.naming import tg263_name

NO_ORGANS = ("background", "foreground_scribbles", "background_scribbles")
"""Segments that MONAI Label's module of 3D Slicer leaves out of `label_info`, but not out of a `.seg.nrrd`."""


def read_organ_label(
    path: Path, *, image_id: str, image_grid: Grid, labels: Mapping[str, int]
) -> LabelArray:
    """Return the label in a file with the values of `labels`.

    If the file names its segments, these names decide; else its values must be those of `labels`, which the
    caller checks.

    Args:
        path: A file with one of `lib.imaging.formats.SCAN_SUFFIXES`.
        image_id: Id of the labelled image, for messages.
        image_grid: Grid of that image.
        labels: TG-263 name -> value.

    Raises:
        LabelError: If the file is no label, or names an organ that is not in `labels`.
        GeometryError: If its grid is not the image's.
    """
    named = read_named_label(path, image_id=image_id, image_grid=image_grid)
    if named is None:
        return read_label(path, image_id=image_id, image_grid=image_grid)[0]
    label, _ = by_names(named.layers, named.present, labels, image_grid, image_id=image_id)
    return label.array


def by_names(
    layers: Sequence[LabelArray],
    names: Mapping[LayerValue, str],
    labels: Mapping[str, int],
    grid: Grid,
    *,
    image_id: str,
    changes: Sequence[str] = (),
) -> tuple[LabelVolume, tuple[str, ...]]:
    """Return a label with the values of `labels`, and a sentence for each change made to it.

    Args:
        layers: Label volumes, each `(X, Y, Z)`.
        names: Layer and value -> name of each segment that has a voxel.
        labels: TG-263 name -> value.
        grid: Grid of the layers.
        image_id: For messages.
        changes: The changes so far.

    Raises:
        LabelError: If a name is no organ of `labels`, two segments are one organ, or two organs share more than
            half of the smaller one.
    """
    organs = _organs(names, labels, image_id)
    found = [
        *changes,
        *dropped((n for place, n in names.items() if place not in organs), "it is no organ"),
        *renamed({names[place]: organ for place, organ in organs.items()}),
    ]
    if len(layers) == 1:
        table = np.zeros(256, np.uint8)
        for (_, value), organ in organs.items():
            table[value] = labels[organ]
        found += moved({value: (o, labels[o]) for (_, value), o in organs.items()})
        label = LabelVolume(np.asarray(table[layers[0]]), grid, labels)
    else:
        masks = {organ: layers[layer] == value for (layer, value), organ in organs.items()}
        combined, shared = combine_masks(masks, labels, grid, image_id)
        label = LabelVolume(combined.array, grid, labels)
        found += overlapping(shared)
    return label, tuple(found)


def _organs(
    names: Mapping[LayerValue, str], labels: Mapping[str, int], image_id: str
) -> dict[LayerValue, str]:
    """Return layer and value -> TG-263 name, without the segments that are no organs."""
    organs: dict[LayerValue, str] = {}
    unknown = []
    for place, name in names.items():
        organ = tg263_name(name)
        if organ in labels:
            if organ in organs.values():
                raise LabelError(f"{image_id}: two segments mean {organ}; join them or rename one")
            organs[place] = str(organ)
        elif name not in NO_ORGANS:
            unknown.append(name)
    if unknown:
        raise LabelError(
            f"{image_id}: {listed(unknown)} {'is not an organ' if len(unknown) == 1 else 'are no organs'} of "
            f"this server; its organs are {', '.join(labels)}: rename or remove the segment"
        )
    return organs
