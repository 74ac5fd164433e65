import numpy as np
import pytest

from lib.errors import LabelError
from lib.imaging.volumes import combine_masks
from lib.organs.table import ORGAN_SETS
from tests.importers.sources import BRAINSTEM, PAROTID_L, box_mask
from tests.phantoms import make_grid

LABELS = ORGAN_SETS["openkbp"]


def test_a_shared_voxel_becomes_the_smaller_organs() -> None:
    grid = make_grid()
    masks = {
        "Brainstem": box_mask(grid, BRAINSTEM),  # 80 voxels
        "Parotid_L": box_mask(grid, np.s_[11:14, 6:9, 4:6]),  # 18, of which 1 x 3 x 2 are shared
    }
    label, shared = combine_masks(masks, LABELS, grid, "case7")
    assert shared == {"Brainstem & Parotid_L": 6}
    assert np.count_nonzero(label.array == LABELS["Parotid_L"]) == 18
    assert np.count_nonzero(label.array == LABELS["Brainstem"]) == 80 - 6
    assert dict(label.labels) == {"Brainstem": 1, "Parotid_L": 4}


def test_of_two_organs_of_one_size_the_lower_value_wins() -> None:
    grid = make_grid()
    masks = {
        "Parotid_L": box_mask(grid, np.s_[2:5, 2:5, 2:5]),
        "Brainstem": box_mask(grid, np.s_[4:7, 2:5, 2:5]),
    }
    label, shared = combine_masks(masks, LABELS, grid, "case7")
    assert shared == {"Brainstem & Parotid_L": 9}
    assert (label.array[4, 2:5, 2:5] == LABELS["Brainstem"]).all()


def test_organs_that_share_most_of_their_voxels_are_refused() -> None:
    grid = make_grid()
    mask = box_mask(grid, PAROTID_L)
    message = r"case7: Parotid_R \(48 voxels\) and Parotid_L \(48\) share 48 voxels"
    with pytest.raises(LabelError, match=message):
        combine_masks({"Parotid_L": mask, "Parotid_R": mask.copy()}, LABELS, grid, "case7")
