from typing import Any

import numpy as np
import pytest

from lib.imaging.volumes import LabelVolume, as_hu
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
def test_hu_are_int16_where_nothing_is_lost_and_float32_elsewhere(
    values: "np.ndarray[Any, np.dtype[Any]]", dtype: type
) -> None:
    result = as_hu(values)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, values)


def test_volumes_are_in_ml_and_leave_out_organs_without_voxels() -> None:
    labels = {"Bone_Mandible": 1, "Parotid_R": 2, "Brainstem": 3}
    # 3 * 5 * 6 = 90 voxels less the mark, and 2 * 4 * 3 = 24 voxels, of 0.009 mL
    volumes = LabelVolume(make_label(), make_grid(), labels).volumes_ml()
    assert volumes == {"Bone_Mandible": 0.801, "Parotid_R": 0.216}
