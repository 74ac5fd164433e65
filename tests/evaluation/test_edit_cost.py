from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from lib.errors import LabelError
from lib.evaluation.edit_cost import EditCosts, OrganCost, added_pixels, contour_pixels, edit_cost
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray, MaskArray, ShapeVox, SpacingMm
from lib.imaging.scans import read_label
from lib.imaging.volumes import CtVolume
from lib.organs.table import ORGAN_SETS
from tests.phantoms import ORIENTATIONS, make_oblique_ct, stored_as

LABELS = {"Brainstem": 1, "Parotid_L": 2, "Parotid_R": 3}
SHAPE: ShapeVox = (20, 16, 6)


def grid_of(shape: ShapeVox = SHAPE, spacing_mm: SpacingMm = (1.0, 1.0, 3.0)) -> Grid:
    return Grid.from_affine(shape, np.diag([*spacing_mm, 1.0]))


def square(
    value: int = 1,
    *,
    start: tuple[int, int] = (4, 4),
    side: int = 5,
    slices: tuple[int, int] = (1, 3),
) -> LabelArray:
    """Return a square of `side` x `side` pixels, drawn on two slices."""
    array = np.zeros(SHAPE, np.uint8)
    x, y = start
    array[x : x + side, y : y + side, slices[0] : slices[1]] = value
    return array


def cost(prediction: LabelArray, submitted: LabelArray, *, tolerance_mm: float = 0) -> OrganCost:
    """Return the cost of the brainstem on a grid of 1 x 1 x 3 mm."""
    result = edit_cost(prediction, submitted, LABELS, grid=grid_of(), tolerance_mm=tolerance_mm)
    return result.organs["Brainstem"]


BLOBS: ShapeVox = (26, 24, 14)


def blobs(seed: int) -> LabelArray:
    """Return three organs of odd shapes that touch each other and nothing else."""
    noise = np.random.default_rng(seed).normal(size=(4, *BLOBS))
    smooth = ndimage.gaussian_filter(noise, (0, 2.5, 2.5, 1.5))
    label = smooth.argmax(axis=0).astype(np.uint8)
    label[[0, -1]] = label[:, [0, -1]] = label[:, :, [0, -1]] = 0
    return np.asarray(label)


# A square of 5 x 5 pixels on two slices: a contour of 16 pixels on each.
@pytest.mark.parametrize(
    ("submitted", "added_mm", "changed", "dsc"),
    [
        pytest.param(square(), 0, 0, 1.0, id="the same"),
        pytest.param(square(start=(5, 4)), 2 * 8, 2 * 10, 0.8, id="moved by a pixel"),
        pytest.param(square(side=6), 2 * 11, 2 * 11, 2 * 25 / 61, id="a row and a column more"),
        pytest.param(square(side=4), 2 * 5, 2 * 9, 2 * 16 / 41, id="a row and a column less"),
        pytest.param(square(slices=(1, 4)), 16, 25, 0.8, id="a slice more"),
        pytest.param(square(slices=(1, 2)), 0, 25, 2 / 3, id="a slice less: only erased"),
        pytest.param(square(start=(12, 4)), 2 * 16, 100, 0.0, id="elsewhere"),
    ],
)
def test_a_changed_square_costs_the_pixels_of_the_drawing(
    submitted: LabelArray, added_mm: float, changed: int, dsc: float
) -> None:
    # "moved by a pixel", one slice: o the old contour, n the new one, * both.
    #     x 4 5 6 7 8 9
    #       o * * * * n
    #       o n     o n
    #       o n     o n
    #       o n     o n
    #       o * * * * n
    # so 5 new ones in front and 3 behind, and 5 + 5 voxels that changed.
    result = cost(square(), submitted)
    assert result.added_path_mm == added_mm
    assert result.changed_voxels == changed
    assert result.changed_ml == pytest.approx(changed * 0.003)
    assert result.dsc == pytest.approx(dsc)
    assert not result.is_left_out
    assert not result.is_missed


def test_a_hole_has_a_contour_too() -> None:
    submitted = square()
    submitted[6, 6, :] = 0
    # The hole's four neighbours; its corners still have four neighbours inside.
    assert cost(square(), submitted).added_path_mm == 2 * 4
    assert cost(submitted, square()).added_path_mm == 0


def test_a_pixel_measures_the_mean_of_its_sides() -> None:
    grid = grid_of(spacing_mm=(0.8, 1.2, 5.0))
    result = edit_cost(square(), square(start=(5, 4)), LABELS, grid=grid)
    assert result.organs["Brainstem"].added_path_mm == pytest.approx(16 * 1.0)
    assert result.organs["Brainstem"].changed_ml == pytest.approx(20 * 0.8 * 1.2 * 5.0 / 1000)


@pytest.mark.parametrize(
    ("tolerance_mm", "added_mm"), [(0.0, 16), (0.9, 16), (1.0, 0), (2.0, 0), (1e-9, 16)]
)
def test_a_contour_within_the_tolerance_is_not_new(tolerance_mm: float, added_mm: float) -> None:
    result = cost(square(), square(start=(5, 4)), tolerance_mm=tolerance_mm)
    assert result.added_path_mm == added_mm
    assert result.changed_voxels == 20


def test_the_tolerance_is_in_mm_within_one_slice() -> None:
    assert cost(square(), square(slices=(1, 4)), tolerance_mm=10.0).added_path_mm == 16
    lines = np.zeros((1, 12, 9), bool)
    lines[0, 2, 1:8] = True
    moved = np.roll(lines, 2, axis=1)
    for spacing_mm, tolerance_mm, added in [((0.7, 3.0), 1.4, 0), ((0.7, 3.0), 1.3, 7)]:
        assert added_pixels(lines, moved, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm) == added


def test_an_organ_without_a_submitted_contour_is_listed_and_not_summed() -> None:
    prediction = square() + square(2, start=(12, 4))
    result = edit_cost(prediction, square(start=(5, 4)), LABELS, grid=grid_of())
    assert result.left_out == ["Parotid_L"]
    assert list(result.submitted) == ["Brainstem"]
    assert (result.mean_dsc, result.added_path_mm, result.changed_voxels) == (0.8, 16, 20)
    left_out = result.organs["Parotid_L"]
    assert (left_out.dsc, left_out.added_path_mm, left_out.changed_voxels) == (None, 0, 50)


def test_the_whole_contour_of_a_missed_organ_is_new() -> None:
    submitted = square() + square(3, start=(12, 4), slices=(1, 2))
    result = edit_cost(square(), submitted, LABELS, grid=grid_of())
    missed = result.organs["Parotid_R"]
    assert (missed.dsc, missed.added_path_mm, missed.changed_voxels) == (0, 16, 25)
    assert missed.is_missed
    assert not missed.is_left_out
    assert (result.mean_dsc, result.added_path_mm, result.changed_voxels) == (0.5, 16, 25)
    assert result.left_out == []
    assert "Parotid_L" not in result.organs


def test_without_submitted_organs_the_sums_are_none() -> None:
    empty = np.zeros(SHAPE, np.uint8)
    result = edit_cost(square(), empty, LABELS, grid=grid_of())
    assert (result.mean_dsc, result.added_path_mm, result.changed_voxels) == (None, None, None)
    assert result.left_out == ["Brainstem"]
    assert edit_cost(empty, empty, LABELS, grid=grid_of()) == EditCosts({})


def test_values_without_an_organ_are_ignored() -> None:
    result = edit_cost(square() + square(9, start=(12, 4)), square(), LABELS, grid=grid_of())
    assert list(result.organs) == ["Brainstem"]
    assert result.mean_dsc == 1


def test_costs_are_stored_as_plain_values() -> None:
    result = edit_cost(square(), square(start=(5, 4)), LABELS, grid=grid_of())
    assert result.as_dict() == {
        "Brainstem": {
            "dsc": 0.8,
            "added_path_mm": 16,
            "changed_voxels": 20,
            "changed_ml": pytest.approx(0.06),
            "is_left_out": False,
            "is_missed": False,
        }
    }


def test_slices_are_taken_along_the_axis_closest_to_the_patients_z() -> None:
    upright = CtVolume("case", square().astype(np.int16), grid_of())
    moved = replace(upright, array_hu=square(start=(5, 4)).astype(np.int16))
    for order, flips in ORIENTATIONS:
        first, second = stored_as(upright, order, flips), stored_as(moved, order, flips)
        result = edit_cost(
            first.array_hu.astype(np.uint8),
            second.array_hu.astype(np.uint8),
            LABELS,
            grid=first.grid,
        )
        assert (result.added_path_mm, result.changed_voxels) == (16, 20), (order, flips)


def test_an_oblique_scan_is_measured_on_its_own_slices() -> None:
    grid = make_oblique_ct().grid
    prediction = np.zeros(grid.shape_vox, np.uint8)
    prediction[4:9, 4:9, 1:3] = 1
    result = edit_cost(prediction, np.roll(prediction, 1, 0), LABELS, grid=grid)
    # 16 pixels of 1.5 x 2 mm.
    assert result.added_path_mm == pytest.approx(16 * 1.75)


def test_an_organ_at_the_edge_of_the_scan_is_closed_there() -> None:
    mask = np.zeros((1, 6, 6), bool)
    mask[0, :3, :3] = True
    assert int(contour_pixels(mask).sum()) == 8
    assert bool(contour_pixels(mask)[0, 0, 0])
    assert not contour_pixels(mask)[0, 1, 1]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(
        LabelError, match=r"the submitted label \(20, 16, 5\).*the same shape is expected"
    ):
        edit_cost(square(), square()[:, :, :5], LABELS, grid=grid_of())


@pytest.mark.parametrize("seed", range(5))
def test_the_same_label_costs_nothing(seed: int) -> None:
    label = blobs(seed)
    result = edit_cost(label, label.copy(order="F"), LABELS, grid=grid_of(BLOBS))
    assert list(result.organs) == list(LABELS)
    assert (result.mean_dsc, result.added_path_mm, result.changed_voxels) == (1, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_volumes_agree_whichever_side_is_the_prediction(seed: int) -> None:
    first, second = blobs(seed), blobs(seed + 100)
    grid = grid_of(BLOBS)
    there = edit_cost(first, second, LABELS, grid=grid)
    back = edit_cost(second, first, LABELS, grid=grid)
    for name, one in there.organs.items():
        other = back.organs[name]
        assert (one.dsc, one.changed_voxels) == (other.dsc, other.changed_voxels)
        assert one.added_path_mm > 0
    assert there.added_path_mm != back.added_path_mm


def platipy_path_mm(predicted: MaskArray, submitted: MaskArray, spacing_mm: SpacingMm) -> float:
    """Return the added path length by ITK's contours, as PlatiPy's `compute_metric_total_apl` has it."""
    added = 0
    for number in range(submitted.shape[2]):
        old, new = (
            sitk.GetArrayFromImage(
                sitk.LabelContour(sitk.GetImageFromArray(mask[:, :, number].astype(np.uint8)))
            )
            for mask in (predicted, submitted)
        )
        added += int(((new > 0) & (old == 0)).sum())
    return added * (spacing_mm[0] + spacing_mm[1]) / 2


@pytest.mark.parametrize("seed", range(5))
def test_the_length_is_that_of_itks_contours(seed: int) -> None:
    first, second = blobs(seed), blobs(seed + 100)
    grid = grid_of(BLOBS, (0.9, 1.1, 2.0))
    result = edit_cost(first, second, LABELS, grid=grid)
    for name, value in LABELS.items():
        expected = platipy_path_mm(first == value, second == value, (0.9, 1.1, 2.0))
        assert result.organs[name].added_path_mm == pytest.approx(expected)


def test_a_clinical_label_that_was_edited_costs_its_edits(shared_data: Path) -> None:
    path = shared_data / "openkbp" / "pt_7" / "label.nii.gz"
    submitted, grid = read_label(path, image_id="pt_7", image_grid=None)
    labels = ORGAN_SETS["openkbp"]
    present = {name: value for name, value in labels.items() if (submitted == value).any()}
    assert len(present) >= 4
    same = edit_cost(submitted, submitted.copy(), labels, grid=grid)
    assert (same.mean_dsc, same.added_path_mm, same.changed_voxels) == (1, 0, 0)
    prediction = np.roll(submitted, 1, 0)
    missed = next(iter(present))
    prediction[prediction == labels[missed]] = 0
    result = edit_cost(prediction, submitted, labels, grid=grid)
    assert [name for name, cost in result.organs.items() if cost.is_missed] == [missed]
    for name, value in present.items():
        expected = platipy_path_mm(prediction == value, submitted == value, grid.spacing_mm)
        assert result.organs[name].added_path_mm == pytest.approx(expected)
        changed = int(((prediction == value) != (submitted == value)).sum())
        assert result.organs[name].changed_voxels == changed
