"""Structures read from a DICOM object, and their conversion to a label volume."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydicom.dataset import FileDataset

from lib.dicom.object_attributes import organ_of
from lib.errors import LabelError
from lib.imaging.geometry import Grid, reordered_onto
from lib.imaging.quantities import LabelArray, MaskArray
from lib.imaging.slice_geometry import sorted_slices
from lib.imaging.volumes import LabelVolume, combine_masks
from lib.organs.changes import overlapping
from lib.organs.naming import tg263_name
from lib.organs.table import Organ

_log = logging.getLogger(__name__)


StructureFilter = Callable[[Sequence[str]], Iterable[str]]
"""Function that is given the names of the structures that are drawn in a file, and returns those to read."""


@dataclass(frozen=True, slots=True)
class StructureSet:
    """Structures on a CT's grid: the ROIs of an RTSTRUCT, or the segments of a SEG.

    Attributes:
        names: Names of all structures in the file, in its order, with or without contours.
        masks: Name -> `(X, Y, Z)` for each selected structure that marks a voxel.
        changes: Differences between the file and the masks (left out, joined, cut, renamed), assumptions and
            doubts, one sentence each.
    """

    names: tuple[str, ...]
    masks: Mapping[str, MaskArray]
    changes: tuple[str, ...]


def label_from_structures(
    structures: StructureSet,
    labels: Mapping[str, int],
    grid: Grid,
    image_id: str,
    *,
    notes: list[str] | None = None,
) -> LabelVolume:
    """Return the structures as one label volume; a shared voxel is assigned to the smaller structure.

    Args:
        structures: The structures; a structure without a voxel may have any name.
        labels: TG-263 name -> value of the accepted organs; other spellings of the names are recognised.
        grid: The CT's grid.
        image_id: For messages.
        notes: Receives a sentence for each pair of structures that share voxels.

    Raises:
        LabelError: If a structure is not an organ of `labels`, two are the same organ, or two share more than
            half of the smaller one.
    """
    organs = match_organs(tuple(structures.masks), labels)
    unknown = [name for name in structures.masks if name not in organs]
    if unknown:
        raise LabelError(
            f"{image_id}: {', '.join(map(repr, unknown))}: not an organ of this server; its organs are "
            f"{', '.join(labels)}: rename or remove the structure"
        )
    for organ in organs.values():
        same = [name for name, meaning in organs.items() if meaning == organ]
        if len(same) > 1:
            raise LabelError(
                f"{image_id}: {' and '.join(map(repr, same))} both mean {organ}; join them or rename one"
            )
    masks = {organ: structures.masks[name] for name, organ in organs.items()}
    label, shared = combine_masks(masks, labels, grid, image_id)
    new_notes = overlapping(shared)
    for note in new_notes:
        _log.info("%s: %s", image_id, note)
    if notes is not None:
        notes += new_notes
    return label


def match_organs(names: Iterable[str], labels: Mapping[str, int]) -> dict[str, str]:
    """Return structure name -> organ, for the names that mean an organ of `labels`."""
    meanings = {name: name if name in labels else tg263_name(name) for name in names}
    return {name: organ for name, organ in meanings.items() if organ in labels and organ}


class LabelOnSlices(NamedTuple):
    """A label volume on the voxels of a CT series, as a DICOM object contains it."""

    slices: list[FileDataset]
    """Headers of the slices, in the order of the array's z axis."""
    grid: Grid
    array: LabelArray
    """`(X, Y, Z)`."""
    organs: list[tuple[Organ, int]]
    """Organs that have a voxel and their values, sorted by value."""


def label_on_slices(
    label: LabelVolume, headers: Sequence[FileDataset], image_id: str
) -> LabelOnSlices:
    """Return a label on the voxels of a CT series; the label's axes may have another order and direction.

    Raises:
        LabelError: If no organ has a voxel, a voxel's value has no name, or an organ is not in the organ table.
        GeometryError: If the label does not lie on the CT's voxels.
    """
    slices, grid = sorted_slices(headers, image_id=image_id)
    array = reordered_onto(label.array, label.grid, grid, image_id=image_id)
    present = organs_present(label, image_id)
    organs = [(organ_of(name, image_id), value) for name, value in present.items()]
    return LabelOnSlices(slices, grid, array, organs)


def organs_present(label: LabelVolume, image_id: str) -> dict[str, int]:
    """Return the organs that have a voxel, sorted by value: those that a DICOM object can contain.

    Raises:
        LabelError: If there is none, or a voxel's value has no name or several.
    """
    values = set(np.flatnonzero(np.bincount(label.array.ravel())).tolist()) - {0}
    organs = {n: v for n, v in sorted(label.labels.items(), key=lambda i: i[1]) if v in values}
    unnamed = sorted(values - set(organs.values()))
    if unnamed or len(organs) > len(values):
        raise LabelError(
            f"{image_id}: the label holds the values {sorted(values)} with the names {dict(label.labels)}; one "
            "name for each value expected"
        )
    if not organs:
        raise LabelError(
            f"{image_id}: the label contains no organ, and DICOM does not allow an object without one; contour "
            "an organ before you export it"
        )
    return organs
