import math

import numpy as np
import pytest

from lib.metrics import dice, organ_dice


def box(start: int, stop: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    mask = np.zeros((20, 4, 4), dtype=bool)
    mask[start:stop] = True
    return mask


def test_dice_of_equal_masks_is_one() -> None:
    assert dice(box(2, 10), box(2, 10)) == 1.0


def test_dice_of_a_box_shifted_by_a_quarter_of_its_length() -> None:
    assert dice(box(2, 10), box(4, 12)) == pytest.approx(0.75)


def test_dice_is_zero_when_one_is_empty_and_nan_when_both_are() -> None:
    assert dice(box(2, 10), box(0, 0)) == 0.0
    assert math.isnan(dice(box(0, 0), box(0, 0)))


def test_an_organ_missing_from_the_reference_is_left_out() -> None:
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[:2] = 1
    prediction = reference.copy()
    prediction[3] = 2
    assert organ_dice(reference, prediction, {"Brainstem": 1, "SpinalCord": 2}) == {
        "Brainstem": 1.0
    }
