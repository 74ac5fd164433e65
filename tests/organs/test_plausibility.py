from pathlib import Path

import numpy as np
import pytest

from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import CtVolume
from lib.organs.plausibility import plausibility_warnings
from lib.organs.table import mirror_values
from lib.recipes.schema import OPENKBP
from phantom import head_and_neck_phantom
from tests.phantoms import make_grid

LABELS = OPENKBP.labels
MIRRORED = np.array(mirror_values(LABELS), np.uint8)
AXES_AND_SIGNS = [(axis, sign) for axis in range(3) for sign in (1, -1)]


def shifted(label: LabelArray, grid: Grid, axis: int, by_mm: float) -> LabelArray:
    return np.roll(label, round(by_mm / grid.spacing_mm[axis]), axis)


def blocks(*organs: str) -> tuple[LabelArray, Grid]:
    """Return organs of 4 x 4 x 4 voxels in a row, from the patient's left to the right."""
    grid = make_grid((40, 12, 12))
    label = np.zeros(grid.shape_vox, np.uint8)
    is_to_right = grid.affine_ras[0, 0] > 0
    for number, organ in enumerate(organs if is_to_right else organs[::-1]):
        label[2 + 8 * number : 6 + 8 * number, 4:8, 4:8] = LABELS[organ]
    return label, grid


def in_soft_tissue(*organs: str) -> list[str]:
    label, grid = blocks(*organs)
    return plausibility_warnings(np.full(label.shape, 40, np.int16), label, grid, LABELS)


@pytest.fixture(scope="module")
def patients(shared_data: Path) -> list[tuple[CtVolume, LabelArray]]:
    """Real CTs with clinical contours."""
    labelled_scans = []
    for case in ("pt_7", "pt_39", "pt_88", "pt_128"):
        ct = read_ct(shared_data / "openkbp" / case / "ct.nii.gz")
        label = shared_data / "openkbp" / case / "label.nii.gz"
        labelled_scans.append((ct, read_label(label, image_id=case, image_grid=ct.grid)[0]))
    return labelled_scans


def test_correct_sides_and_tissue_give_no_warning() -> None:
    assert in_soft_tissue("Parotid_L", "Brainstem", "Parotid_R") == []
    assert in_soft_tissue("Parotid_L", "Brainstem") == []
    assert in_soft_tissue("Parotid_L") == []
    assert in_soft_tissue() == ["the label contains no organ; is it the right file?"]


def test_swapped_sides_give_a_warning() -> None:
    assert in_soft_tissue("Parotid_R", "Brainstem", "Parotid_L") == [
        "Parotid_L lies to the right of Parotid_R; are the sides swapped?"
    ]


def test_one_organ_of_a_pair_is_compared_with_the_middle() -> None:
    assert in_soft_tissue("Brainstem", "Parotid_L") == [
        "Parotid_L lies on the right; is it Parotid_R?"
    ]
    assert in_soft_tissue("Parotid_R", "Brainstem") == [
        "Parotid_R lies on the left; is it Parotid_L?"
    ]


def test_an_organ_in_the_wrong_tissue_gives_a_warning() -> None:
    label, grid = blocks("Bone_Mandible", "SpinalCord", "Brainstem", "Parotid_R")
    hu = np.full(label.shape, 40, np.int16)
    hu[label == LABELS["SpinalCord"]] = 700
    hu[label == LABELS["Brainstem"]] = -900
    assert plausibility_warnings(hu, label, grid, LABELS) == [
        "Brainstem lies in air for 100% of its volume; is it shifted?",
        "SpinalCord lies on bone for 100% of its volume; is it shifted?",
        "only 0% of Bone_Mandible is bone; is it shifted?",
    ]


@pytest.mark.parametrize(("voxels", "warnings"), [(150, 0), (151, 1)])
def test_an_organ_that_is_far_too_large_gives_a_warning(voxels: int, warnings: int) -> None:
    # Voxels of 10 mm: 1 mL each; at most 150 mL of a larynx.
    grid = Grid.from_affine((10, 10, 4), np.diag([10.0, 10, 10, 1]))
    label = np.zeros(400, np.uint8)
    label[:voxels] = LABELS["Larynx"]
    label = label.reshape(grid.shape_vox)
    found = plausibility_warnings(np.full(label.shape, 40, np.int16), label, grid, LABELS)
    expected = (
        "Larynx has 151 mL, at most 150 mL expected; is it another structure, or the background?"
    )
    assert found == [expected] * warnings


def test_the_background_of_a_patient_in_place_of_an_organ_gives_a_warning() -> None:
    ct, label = head_and_neck_phantom(0, labels=LABELS)
    for organ, value in LABELS.items():
        inverted = np.where(label.array == value, 0, value).astype(np.uint8)
        texts = plausibility_warnings(ct.array_hu, inverted, ct.grid, LABELS)
        assert any(text.startswith(f"{organ} has ") for text in texts)


def test_an_organ_of_a_few_voxels_gives_no_warning() -> None:
    label, grid = blocks("SpinalCord")
    label[label > 0] = np.arange(64) < 19
    label *= LABELS["SpinalCord"]
    assert plausibility_warnings(np.full(label.shape, 700, np.int16), label, grid, LABELS) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_phantom_gives_a_warning_only_if_it_is_swapped_or_shifted(seed: int) -> None:
    ct, label = head_and_neck_phantom(seed, labels=LABELS)
    assert plausibility_warnings(ct.array_hu, label.array, ct.grid, LABELS) == []
    assert plausibility_warnings(ct.array_hu, MIRRORED[label.array], ct.grid, LABELS)
    for axis, sign in AXES_AND_SIGNS:
        moved = shifted(label.array, ct.grid, axis, sign * 20)
        assert plausibility_warnings(ct.array_hu, moved, ct.grid, LABELS), (axis, sign)


def test_real_contours_give_a_warning_only_if_swapped_or_shifted(
    patients: list[tuple[CtVolume, LabelArray]],
) -> None:
    for ct, label in patients:
        assert plausibility_warnings(ct.array_hu, label, ct.grid, LABELS) == []
        assert plausibility_warnings(ct.array_hu, MIRRORED[label], ct.grid, LABELS)
        for axis, sign in AXES_AND_SIGNS:
            moved = shifted(label, ct.grid, axis, sign * 20)
            assert plausibility_warnings(ct.array_hu, moved, ct.grid, LABELS), (
                ct.image_id,
                axis,
                sign,
            )
