"""How well a prediction agrees with a reference."""

from collections.abc import Mapping

import numpy as np

from lib.units import LabelArray, MaskArray


def dice(reference: MaskArray, prediction: MaskArray) -> float:
    """Return the Dice similarity coefficient of two masks of one shape, 0 to 1; NaN where both are empty.

    Dice, Ecology 1945: `2 |A and B| / (|A| + |B|)`.
    """
    total = int(np.count_nonzero(reference)) + int(np.count_nonzero(prediction))
    if total == 0:
        return float("nan")
    return 2.0 * int(np.count_nonzero(reference & prediction)) / total


def organ_dice(
    reference: LabelArray, prediction: LabelArray, labels: Mapping[str, int]
) -> dict[str, float]:
    """Return the DSC of each organ that the reference contains.

    An organ missing from the reference is unknown, not absent: it is left out, whatever was predicted.
    """
    present = set(np.unique(reference).tolist())
    return {
        name: dice(reference == value, prediction == value)
        for name, value in labels.items()
        if value in present
    }
