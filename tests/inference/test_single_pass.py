from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib.backends.eager import EagerBackend
from lib.imaging.scans import read_ct, write_ct
from lib.inference.preprocessing import Pipeline
from lib.inference.single_pass import contour, probabilities
from lib.models.registry import Model
from lib.recipes.schema import OPENKBP, Recipe
from phantom import head_and_neck_phantom
from tests.phantoms import MARK_VOX, SPACING_MM, make_ct, make_oblique_ct, stored_as

RECIPE = replace(
    OPENKBP,
    spacing_mm=SPACING_MM,
    spacing_tolerance=0.0,
    hu_windows=((-1000.0, 1000.0),),
    crop_vox=(12, 12, 8),
)


class BoneIsMandible(nn.Module):
    """A network that labels voxels above 400 HU as mandible (7), and all others as background."""

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.full((image.shape[0], 8, *image.shape[2:]), -20.0)
        logits[:, 7] = torch.where(image[:, 0] > 0.4, 20.0, -20.0)
        logits[:, 0] = -logits[:, 7]
        return logits


def bone_model(recipe: Recipe = RECIPE) -> Model:
    return Model("bone", BoneIsMandible(), recipe, {})


@pytest.mark.parametrize("ct", [make_ct(), make_oblique_ct()], ids=["upright", "oblique"])
def test_contours_are_on_the_scans_voxels(ct: object) -> None:
    assert isinstance(ct, type(make_ct()))
    result = contour(ct, bone_model())
    assert result.label.grid is ct.grid
    np.testing.assert_array_equal(result.label.array == 7, ct.array_hu > 400)
    assert result.label.array[MARK_VOX] == 7


def test_contours_do_not_depend_on_how_the_file_stores_the_scan() -> None:
    ct = stored_as(make_ct(), (2, 0, 1), (True, False, True))
    result = contour(ct, bone_model())
    np.testing.assert_array_equal(result.label.array == 7, ct.array_hu > 400)


def test_seconds_name_each_stage_and_the_version_is_the_models() -> None:
    result = contour(make_ct(), bone_model())
    assert list(result.seconds) == ["prepare", "network", "restore"]
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert result.version == "bone"


def test_windows_of_any_overlap_agree_for_a_network_of_one_voxel_receptive_field() -> None:
    pipeline = Pipeline(RECIPE)
    prepared = pipeline.prepare(make_ct())
    backend = EagerBackend(bone_model().network, "cpu")
    results = [
        probabilities(prepared, bone_model(), pipeline=pipeline, backend=backend, overlap=overlap)
        for overlap in (0.0, 0.25, 0.6)
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
    torch.testing.assert_close(results[0].sum(dim=0), torch.ones(prepared.hu.shape))


def test_a_scan_smaller_than_the_window_is_contoured() -> None:
    result = contour(make_ct(), bone_model(replace(RECIPE, crop_vox=(64, 64, 64))))
    np.testing.assert_array_equal(result.label.array == 7, make_ct().array_hu > 400)


def test_dicom_and_nifti_of_one_real_scan_give_the_same_contours(
    shared_data: Path, tmp_path: Path
) -> None:
    recipe = replace(OPENKBP, hu_windows=((-1000.0, 1000.0),))
    by_dicom = read_ct(shared_data / "hn-ct-dicom")
    write_ct(tmp_path / "scan.nii.gz", by_dicom)
    first = contour(by_dicom, bone_model(recipe)).label
    second = contour(read_ct(tmp_path / "scan.nii.gz"), bone_model(recipe)).label
    assert first.array.any()
    assert first.grid.is_same_as(second.grid)
    np.testing.assert_array_equal(first.array, second.array)


def test_left_and_right_organs_are_on_their_sides() -> None:
    ct, label = head_and_neck_phantom(
        2, grid_shape=(64, 64, 48), spacing_mm=(8.0, 8.0, 5.0), labels=OPENKBP.labels
    )
    pipeline = Pipeline(replace(OPENKBP, spacing_tolerance=0.0, spacing_mm=(6.0, 6.0, 5.0)))
    prepared = pipeline.prepare(ct)
    model_label = pipeline.prepare_label(label.array, prepared)
    for name, is_right in (("Parotid_R", True), ("Parotid_L", False)):
        x = np.argwhere(model_label == OPENKBP.labels[name])[:, 0].mean()
        assert (x > model_label.shape[0] / 2) == is_right, "x runs to the patient's right"
