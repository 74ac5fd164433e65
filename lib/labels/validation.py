"""What a label must be before the store keeps it, whoever brings it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import LabelVolume
from lib.organs.naming import to_organ_values
from lib.organs.plausibility import plausibility_warnings


@dataclass(frozen=True, slots=True)
class CheckedLabel:
    """A label that may be kept.

    Attributes:
        volume: With our values, on the image's grid.
        organs: TG-263 names with at least one voxel, in the order of their values.
        doubts: What looks wrong about it, in sentences; it may be kept all the same.
    """

    volume: LabelVolume
    organs: tuple[str, ...]
    doubts: tuple[str, ...]


def check_label(
    file: Path,
    *,
    image: Path,
    image_id: str,
    label_info: Sequence[Mapping[str, Any]],
    labels: Mapping[str, int],
) -> CheckedLabel:
    """Return the label in a file, with the values of `labels`.

    Args:
        file: What was sent, or laid into the folder.
        image: The scan that it was drawn on.
        image_id: Its id.
        label_info: What the client says of the values; empty where they are ours.
        labels: TG-263 name -> our value.

    Raises:
        ScanError: If the image is not one readable CT.
        LabelError: If the file is no label of whole numbers, or a value or a name is not known.
        GeometryError: If it does not lie on the image's grid.
    """
    ct = read_ct(image, image_id=image_id)
    array, _ = read_label(file, image_id=image_id, image_grid=ct.grid, integers_only=True)
    ours = to_organ_values(array, label_info, labels, image_id)
    present = {int(value) for value in np.unique(ours)}
    organs = [
        name for name, value in sorted(labels.items(), key=lambda i: i[1]) if value in present
    ]
    found = plausibility_warnings(ct.array_hu, ours, ct.grid, labels)
    return CheckedLabel(LabelVolume(ours, ct.grid, labels), tuple(organs), tuple(found))
