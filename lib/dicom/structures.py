"""Structures that were read from a DICOM object, and the label volume that they make."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.errors import LabelError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import MaskArray
from lib.imaging.volumes import LabelVolume, combine_masks
from lib.organs.naming import organ_of_structure

_log = logging.getLogger(__name__)


Wanted = Callable[[Sequence[str]], Iterable[str]]
"""Given the names of all structures of a file, returns those to read; the others are not looked at."""


@dataclass(frozen=True, slots=True)
class StructureSet:
    """Structures on a CT's grid: the ROIs of an RTSTRUCT, or the segments of a SEG.

    Attributes:
        names: Every structure's name in the file, in its order, drawn or not.
        masks: Name -> `(X, Y, Z)` for each wanted structure that marks a voxel.
        notes: What was passed over, and what was assumed; one sentence each.
    """

    names: tuple[str, ...]
    masks: Mapping[str, MaskArray]
    notes: tuple[str, ...]


def label_from(
    structures: StructureSet,
    labels: Mapping[str, int],
    grid: Grid,
    image_id: str,
    *,
    notes: list[str] | None = None,
) -> LabelVolume:
    """Return the structures as one label volume; of two that claim a voxel the smaller one gets it.

    Args:
        structures: What was read; a structure without a voxel may be called anything.
        labels: TG-263 name -> value, of the organs that are wanted; other spellings of them are understood.
        grid: The CT's.
        image_id: For messages.
        notes: Gets a sentence for each two that claimed the same voxels.

    Raises:
        LabelError: If a structure is no organ of `labels`, two are the same organ, or two share over half of
            the smaller one.
    """
    organs = organs_among(tuple(structures.masks), labels)
    unknown = [name for name in structures.masks if name not in organs]
    if unknown:
        raise LabelError(
            f"{image_id}: {', '.join(map(repr, unknown))}: no organ of this server's; it contours "
            f"{', '.join(labels)}: rename what is one of them, and leave out what is not"
        )
    for organ in organs.values():
        same = [name for name, meaning in organs.items() if meaning == organ]
        if len(same) > 1:
            raise LabelError(
                f"{image_id}: {' and '.join(map(repr, same))} both mean {organ}; join them or rename one"
            )
    masks = {organ: structures.masks[name] for name, organ in organs.items()}
    label, shared = combine_masks(masks, labels, grid, image_id)
    said = [f"{pair}: {n} voxels that both claim went to the smaller" for pair, n in shared.items()]
    for note in said:
        _log.info("%s: %s", image_id, note)
    if notes is not None:
        notes += said
    return label


def organs_among(names: Iterable[str], labels: Mapping[str, int]) -> dict[str, str]:
    """Return, of structures' names, those that mean an organ of `labels`, and which."""
    meanings = {name: name if name in labels else organ_of_structure(name) for name in names}
    return {name: organ for name, organ in meanings.items() if organ in labels and organ}


def present(label: LabelVolume, image_id: str) -> dict[str, int]:
    """Return the organs that have a voxel, by value: what a DICOM object can hold of a label.

    Raises:
        LabelError: If there is none, or a voxel's value has no name, or several.
    """
    values = set(np.flatnonzero(np.bincount(label.array.ravel())).tolist()) - {0}
    found = {n: v for n, v in sorted(label.labels.items(), key=lambda i: i[1]) if v in values}
    strange = sorted(values - set(found.values()))
    if strange or len(found) > len(values):
        raise LabelError(
            f"{image_id}: the label holds the values {sorted(values)}, and names {dict(label.labels)}; one "
            "name for each value expected"
        )
    if not found:
        raise LabelError(
            f"{image_id}: no voxel of the label is an organ's, and a DICOM object without one is not allowed; "
            "keep the label, and export it when there is something in it"
        )
    return found
