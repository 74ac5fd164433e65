from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from lib.errors import GeometryError
from lib.imaging.geometry import Grid, from_sitk, to_sitk
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.preprocessing import Pipeline, Prepared, body_box, body_mask
from lib.inference.resampling import ModelGrid
from lib.recipes.schema import OPENKBP, Recipe
from tests.phantoms import (
    MARK_VOX,
    ORIENTATIONS,
    SPACING_MM,
    make_ct,
    make_grid,
    make_label,
    make_oblique_ct,
    stored_as,
)

AS_IT_IS = replace(OPENKBP, spacing_mm=SPACING_MM, spacing_tolerance=0.0)
FINER = replace(AS_IT_IS, spacing_mm=(1.0, 1.0, 1.5))
COARSER = replace(AS_IT_IS, spacing_mm=(2.0, 3.0, 3.5))


def one_hot(label: LabelArray, recipe: Recipe) -> torch.Tensor:
    return torch.nn.functional.one_hot(
        torch.from_numpy(label.astype(np.int64)), recipe.classes
    ).movedim(-1, 0)


def round_trip(ct: CtVolume, label: LabelArray, recipe: Recipe) -> tuple[Prepared, LabelVolume]:
    pipeline = Pipeline(recipe)
    prepared = pipeline.prepare(ct)
    model_label = pipeline.prepare_label(label, prepared)
    return prepared, pipeline.restore(one_hot(model_label, recipe).float(), prepared)


def test_ct_that_would_be_resampled_to_too_many_voxels_is_refused() -> None:
    ct = make_ct()
    # 900 x 900 x 2400 mm in voxels of 1 x 1 x 1.5 mm are 1,296,000,000.
    spacing_mm = np.array([900.0, 900.0, 2400.0]) / ct.grid.shape_vox
    grid = Grid.from_affine(ct.grid.shape_vox, np.diag([*spacing_mm, 1.0]))
    with pytest.raises(
        GeometryError, match=r"case: .* has 1296000000 voxels of the network's size"
    ):
        Pipeline(FINER).prepare(CtVolume("case", ct.array_hu, grid))


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_the_network_sees_the_same_volume_however_the_file_stores_it(
    order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    upright = Pipeline(FINER).prepare(make_ct())
    other = Pipeline(FINER).prepare(stored_as(make_ct(), order, flips))
    np.testing.assert_allclose(other.hu, upright.hu, atol=1e-3)


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_the_label_is_restored_on_the_files_grid_voxel_for_voxel(
    order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    ct = stored_as(make_ct(), order, flips)
    label = stored_as(replace(make_ct(), array_hu=make_label()), order, flips).array_hu
    _, restored = round_trip(ct, label, AS_IT_IS)
    assert restored.grid is ct.grid
    np.testing.assert_array_equal(restored.array[label != 7], label[label != 7])


def test_an_oblique_scan_is_restored_on_its_own_grid() -> None:
    ct = make_oblique_ct()
    prepared, restored = round_trip(ct, make_label(), AS_IT_IS)
    assert prepared.frame.axes == (0, 1, 2)
    assert restored.grid.is_same_as(ct.grid)
    np.testing.assert_array_equal(restored.array, make_label())


@pytest.mark.parametrize("recipe", [FINER, COARSER], ids=["finer", "coarser"])
def test_resampled_organs_are_restored_in_place(recipe: Recipe) -> None:
    label = make_label()
    label[MARK_VOX] = 1
    _, restored = round_trip(make_ct(), label, recipe)
    for value in (1, 2):
        wanted = np.argwhere(label == value).mean(axis=0) * SPACING_MM
        actual = np.argwhere(restored.array == value).mean(axis=0) * SPACING_MM
        # The edges of a box lie between coarse voxels; a shift by one voxel, or by half of one, would show.
        allowed = 0.35 * np.maximum(SPACING_MM, recipe.spacing_mm)
        assert (np.abs(wanted - actual) < allowed).all()


def test_the_networks_x_runs_to_the_patients_right() -> None:
    # The phantom's bone is on the patient's left, and its files run right to left (LPS).
    prepared = Pipeline(AS_IT_IS).prepare(make_ct())
    bone = np.argwhere(prepared.hu > 600)[:, 0].mean()
    assert bone < prepared.hu.shape[0] / 2


def test_resampling_does_not_shift_a_ramp() -> None:
    # HU rises by 10 per mm along x, from 0 at the centre of the first voxel: any shift would change values.
    grid = make_grid((40, 16, 12))
    x_mm = np.arange(40) * SPACING_MM[0]
    ct = CtVolume(
        "ramp", np.broadcast_to(x_mm[:, None, None] * 10, (40, 16, 12)).astype(np.float32), grid
    )
    frame = ModelGrid.of(grid, FINER)
    resampled = frame.to_model(ct.array_hu)
    # The network's x runs against the file's; 60 voxels of 1 mm cover 40 of 1.5 mm; the first centre lies
    # at 0.5 mm - 0.75 mm from the last file voxel's centre.
    expected = (x_mm[-1] - (np.arange(60) + 0.5 - 0.75)) * 10
    np.testing.assert_allclose(resampled[1:-1, 8, 6], expected[1:-1], atol=0.01)


def test_a_scan_close_to_the_recipes_voxels_is_not_resampled() -> None:
    near = replace(AS_IT_IS, spacing_mm=(1.4, 2.2, 3.1), spacing_tolerance=0.15)
    assert not ModelGrid.of(make_grid(), near).is_resampled
    assert ModelGrid.of(make_grid(), replace(near, spacing_tolerance=0.05)).is_resampled


def test_windows_scale_to_minus_one_and_one_and_clip() -> None:
    recipe = replace(OPENKBP, hu_windows=((-100.0, 100.0), (0.0, 1000.0)))
    window = Pipeline(recipe).window(np.array([[[-2000.0, -100, 0, 100, 500, 3000]]]))
    np.testing.assert_allclose(window[0, 0, 0], [-1, -1, 0, 1, 1, 1])
    np.testing.assert_allclose(window[1, 0, 0], [-1, -1, -1, -0.8, 0, 1])


def test_only_the_largest_piece_of_an_organ_is_kept() -> None:
    label = make_label()
    label[17, 14, 10] = 1
    _, restored = round_trip(make_ct(), label, AS_IT_IS)
    assert restored.array[17, 14, 10] == 0
    assert (restored.array == 1).sum() == (label == 1).sum() - 1


def test_no_organs_give_an_empty_label() -> None:
    pipeline = Pipeline(AS_IT_IS)
    prepared = pipeline.prepare(make_ct())
    background = one_hot(np.zeros(prepared.hu.shape, np.uint8), AS_IT_IS).float()
    restored = pipeline.restore(background, prepared)
    assert restored.array.shape == make_ct().grid.shape_vox
    assert not restored.array.any()
    assert restored.volumes_ml() == {}


def test_the_body_is_found_without_table_and_air() -> None:
    hu = np.full((60, 60, 20), -1000.0, np.float32)
    hu[20:40, 15:40, :] = 0
    hu[5:55, 50:52, :] = 200  # a table, apart from the body
    assert body_mask(hu)[:, 45:].sum() == 0
    box = body_box(hu, np.array([4.0, 4.0, 3.0]))
    assert box == (slice(17, 43), slice(12, 43), slice(0, 20))


def test_a_volume_without_a_body_is_not_cropped() -> None:
    hu = np.full((10, 11, 12), -1000.0, np.float32)
    assert body_box(hu, np.ones(3)) == (slice(0, 10), slice(0, 11), slice(0, 12))


def test_a_real_scan_is_restored_after_preprocessing(shared_data: Path) -> None:
    case = shared_data / "openkbp" / "pt_2"
    ct = read_ct(case / "ct.nii.gz")
    label, _ = read_label(case / "label.nii.gz", image_id="pt_2", image_grid=ct.grid)
    _, restored = round_trip(ct, label, OPENKBP)
    for name, value in OPENKBP.labels.items():
        reference, actual = label == value, restored.array == value
        if reference.any():
            # All voxels except strays outside the largest component.
            assert 2 * (reference & actual).sum() / (reference.sum() + actual.sum()) > 0.99, name


def test_dicom_and_nifti_of_one_scan_give_the_network_the_same_voxels(
    shared_data: Path, tmp_path: Path
) -> None:
    ct = read_ct(shared_data / "hn-ct-dicom")
    sitk.WriteImage(to_sitk(ct.array_hu, ct.grid), str(tmp_path / "scan.nii.gz"))
    again = read_ct(tmp_path / "scan.nii.gz")
    first, second = Pipeline(OPENKBP).prepare(ct), Pipeline(OPENKBP).prepare(again)
    np.testing.assert_array_equal(first.hu, second.hu)


def test_sitk_round_trip_of_a_grid(tmp_path: Path) -> None:
    ct = make_oblique_ct()
    path = tmp_path / "ct.nrrd"
    sitk.WriteImage(to_sitk(ct.array_hu, ct.grid), str(path))
    image = sitk.ReadImage(str(path))
    assert Grid.of_sitk(image).is_same_as(ct.grid)
    np.testing.assert_array_equal(from_sitk(image), ct.array_hu)
