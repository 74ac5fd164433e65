"""Resampling from a CT's voxels to the network's."""

import numpy as np
import pytest
import SimpleITK as sitk

from lib.imaging.geometry import Grid
from lib.inference.resampling import ModelGrid
from lib.recipes.schema import OPENKBP


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        ((64, 48, 20), (1.0, 1.0, 3.0)),
        ((8, 9, 30), (4.5, 5.0, 0.8)),
        ((40, 40, 8), (2.1, 3.9, 6.0)),
    ],
)
def test_a_scan_is_resampled_as_by_itks_filters(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> None:
    grid = Grid.from_affine(shape, np.diag([*spacing_mm, 1.0]))
    frame = ModelGrid.of(grid, OPENKBP)
    array = np.random.default_rng(0).integers(-1024, 3000, shape).astype(np.int16)
    image = sitk.GetImageFromArray(array.astype(np.float32).transpose(2, 1, 0))
    image.SetSpacing(spacing_mm)
    image.SetOrigin([0.5 * side for side in spacing_mm])
    for axis, (old, new) in enumerate(zip(spacing_mm, frame.spacing_model_mm, strict=True)):
        if new / old > 1.2:
            sigma_mm = old * np.sqrt(((new / old) ** 2 - 1) / 12)
            image = sitk.RecursiveGaussian(image, float(sigma_mm), direction=axis)
    resample = sitk.ResampleImageFilter()
    resample.SetSize(frame.shape_model)
    resample.SetOutputSpacing(frame.spacing_model_mm)
    resample.SetOutputOrigin([0.5 * side for side in frame.spacing_model_mm])
    resample.SetInterpolator(sitk.sitkLinear)
    resample.UseNearestNeighborExtrapolatorOn()
    expected = sitk.GetArrayFromImage(resample.Execute(image)).transpose(2, 1, 0)
    assert frame.is_resampled
    np.testing.assert_allclose(frame.to_model(array), expected, atol=0.01)
