import numpy as np

from lib.prompts.simulated_clicks import next_click


def test_the_click_is_in_the_middle_of_the_largest_error() -> None:
    reference = np.zeros((20, 20, 20), bool)
    prediction = reference.copy()
    reference[2:7, 2:7, 2:7] = True  # 125 voxels are missing, about (4, 4, 4)
    prediction[12:15, 12:15, 12:15] = True  # 27 voxels are too many
    click = next_click(reference, prediction, (1.0, 1.0, 1.0))
    assert click is not None
    assert click.is_add
    assert click.voxels.tolist() == [[4, 4, 4]]


def test_an_excess_is_clicked_to_be_removed() -> None:
    reference = np.zeros((20, 20, 20), bool)
    prediction = reference.copy()
    prediction[5:10, 8:13, 0:3] = True
    click = next_click(reference, prediction, (1.0, 1.0, 1.0))
    assert click is not None
    assert not click.is_add
    # The region ends with the volume, which counts as its border: the middle slice is deepest.
    assert click.voxels[0, 2] == 1
    assert 6 <= click.voxels[0, 0] <= 8


def test_the_middle_is_measured_in_mm() -> None:
    reference = np.zeros((30, 9, 9), bool)
    reference[5:25, 2:7, 2:7] = True
    click = next_click(reference, np.zeros_like(reference), (0.1, 1.0, 1.0))
    assert click is not None
    # 20 voxels of 0.1 mm are thinner than 5 of 1 mm: the middle lies half-way along the first axis.
    assert click.voxels[0, 0] in (14, 15)


def test_equal_masks_need_no_click() -> None:
    mask = np.ones((4, 4, 4), bool)
    assert next_click(mask, mask, (1.0, 1.0, 1.0)) is None
