from typing import Any

import numpy as np
import pytest

from lib.errors import LabelError
from lib.imaging.volumes import LabelVolume, as_hu, combine_masks
from lib.organs.table import ORGAN_SETS
from tests.importers.sources import BRAINSTEM, PAROTID_L, box_mask
from tests.phantoms import make_grid, make_label


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([-1024, 3071], np.int32), np.int16),
        (np.array([-1024.0, 3071.0], np.float64), np.int16),
        (np.array([-1024.0, 0.5], np.float64), np.float32),
        (np.array([-1024.0, np.nan], np.float32), np.float32),
        (np.array([0, 40000], np.uint16), np.float32),
        (np.array([-40000.0, 0.0], np.float32), np.float32),
        (np.array([], np.float64), np.int16),
    ],
)
def test_hu_are_int16_if_lossless_and_float32_otherwise(
    values: "np.ndarray[Any, np.dtype[Any]]", dtype: type
) -> None:
    result = as_hu(values)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, values)


def test_volumes_are_in_ml_and_leave_out_organs_without_voxels() -> None:
    labels = {"Bone_Mandible": 1, "Parotid_R": 2, "Brainstem": 3}
    # 3 * 5 * 6 = 90 voxels minus the mark, and 2 * 4 * 3 = 24 voxels, of 0.009 mL each.
    volumes = LabelVolume(make_label(), make_grid(), labels).volumes_ml()
    assert volumes == {"Bone_Mandible": 0.801, "Parotid_R": 0.216}


LABELS = ORGAN_SETS["openkbp"]


def test_a_shared_voxel_is_assigned_to_the_smaller_organ() -> None:
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


def test_of_two_organs_of_equal_size_the_lower_value_wins() -> None:
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
