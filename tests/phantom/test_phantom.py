"""The synthetic head and neck: its anatomy, and the studies folder generated from it."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from lib.errors import ConfigError, DatastoreError, LabelError
from lib.imaging.quantities import FloatArray, MaskArray
from lib.imaging.scans import read_ct, read_label, write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.organs.table import ORGAN_SETS, ORGANS
from lib.recipes.schema import OPENKBP, PDDCA, NetworkConfig, Recipe
from phantom import head_and_neck_phantom
from phantom.cohort import voxel_grid, write_cohort
from phantom.shapes import Column, Difference, Ellipsoid, Intersection, Shape, Tube, Union

DRAWN = sorted({name for labels in ORGAN_SETS.values() for name in labels})
ALL = {name: value for value, name in enumerate(DRAWN, start=1)}
SEEDS = (0, 1)
VOLUMES_ML = {
    "Brainstem": (17, 34),
    "SpinalCord": (14, 32),
    "Bone_Mandible": (42, 85),
    "Larynx": (18, 40),
    "Esophagus": (8, 30),
    "Parotid_L": (15, 38),
    "Parotid_R": (15, 38),
    "Glnd_Submand_L": (5.5, 12),
    "Glnd_Submand_R": (5.5, 12),
    "OpticNrv_L": (0.45, 1.2),
    "OpticNrv_R": (0.45, 1.2),
    "OpticChiasm": (0.25, 0.85),
}
Drawn = tuple[CtVolume, LabelVolume]


@pytest.fixture(scope="module")
def patients() -> dict[int, Drawn]:
    return {seed: head_and_neck_phantom(seed, labels=ALL) for seed in SEEDS}


def mask_of(label: LabelVolume, name: str) -> MaskArray:
    return np.asarray(label.array == label.labels[name])


def centre_ras(label: LabelVolume, name: str) -> FloatArray:
    affine = label.grid.affine_ras
    return np.asarray(
        affine[:3, :3] @ np.argwhere(mask_of(label, name)).mean(axis=0) + affine[:3, 3]
    )


def hu_inside(generated: Drawn, name: str) -> FloatArray:
    ct, label = generated
    mask = ndimage.binary_erosion(mask_of(label, name))
    return np.asarray(ct.array_hu[mask].astype(float))


def test_the_same_seed_gives_the_same_patient(patients: dict[int, Drawn]) -> None:
    ct, label = head_and_neck_phantom(1, labels=ALL)
    assert ct.grid == patients[1][0].grid == label.grid
    np.testing.assert_array_equal(ct.array_hu, patients[1][0].array_hu)
    np.testing.assert_array_equal(label.array, patients[1][1].array)


def test_two_seeds_give_two_patients(patients: dict[int, Drawn]) -> None:
    assert patients[0][1].volumes_ml() != patients[1][1].volumes_ml()
    assert not np.array_equal(patients[0][1].array > 0, patients[1][1].array > 0)


def test_the_grid_is_that_of_a_supine_patient(patients: dict[int, Drawn]) -> None:
    ct, _ = patients[0]
    assert ct.array_hu.shape == ct.grid.shape_vox == (128, 128, 96)
    np.testing.assert_allclose(ct.grid.affine_ras[:3, :3], np.diag([-4.0, -4.0, 2.5]))
    assert ct.array_hu.dtype == np.int16
    assert ct.array_hu.min() >= -1024
    assert ct.array_hu.max() <= 3071


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", DRAWN)
def test_an_organ_is_one_piece_of_plausible_size(
    patients: dict[int, Drawn], seed: int, name: str
) -> None:
    _, label = patients[seed]
    low, high = VOLUMES_ML[name]
    assert low <= label.volumes_ml()[name] <= high
    assert ndimage.label(mask_of(label, name), np.ones((3, 3, 3)))[1] == 1


def test_every_organ_of_every_set_is_drawn() -> None:
    for labels in ORGAN_SETS.values():
        _, label = head_and_neck_phantom(3, labels=labels)
        assert set(label.volumes_ml()) == set(labels)
        assert label.array.max() == max(labels.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_left_organs_are_on_the_left(patients: dict[int, Drawn], seed: int) -> None:
    for organ in (ORGANS[name] for name in DRAWN):
        if organ.side:
            x = centre_ras(patients[seed][1], organ.name)[0]
            assert (x < -5) if organ.side == "_L" else (x > 5)


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_are_at_their_anatomical_positions(patients: dict[int, Drawn], seed: int) -> None:
    label = patients[seed][1]
    _, y, z = np.transpose([centre_ras(label, name) for name in DRAWN])
    at = {name: (y[i], z[i]) for i, name in enumerate(DRAWN)}
    from_front = ["Bone_Mandible", "Larynx", "Brainstem", "SpinalCord"]
    assert [at[n][0] for n in from_front] == sorted((at[n][0] for n in from_front), reverse=True)
    from_top = ["OpticChiasm", "Brainstem", "Parotid_L", "Glnd_Submand_L", "Larynx", "Esophagus"]
    assert [at[n][1] for n in from_top] == sorted((at[n][1] for n in from_top), reverse=True)


def test_paired_organs_are_not_mirror_images(patients: dict[int, Drawn]) -> None:
    _, label = patients[0]
    for name in ("Parotid_L", "Glnd_Submand_L", "OpticNrv_L"):
        left, right = (mask_of(label, n) for n in (name, ORGANS[name].mirror))
        boxes = [m[ndimage.find_objects(m.astype(int))[0]] for m in (left, right[::-1])]
        assert boxes[0].shape != boxes[1].shape or (boxes[0] != boxes[1]).any()


def test_an_organ_does_not_depend_on_the_other_requested_organs(patients: dict[int, Drawn]) -> None:
    _, label = patients[1]
    ct, alone = head_and_neck_phantom(1, labels={"Parotid_L": 200})
    np.testing.assert_array_equal(alone.array == 200, mask_of(label, "Parotid_L"))
    np.testing.assert_array_equal(ct.array_hu, patients[1][0].array_hu)


def test_an_organ_that_is_not_drawn_is_refused() -> None:
    with pytest.raises(LabelError, match="the phantom has no Cochlea_L; it has Bone_Mandible"):
        head_and_neck_phantom(0, grid_shape=(16, 16, 16), labels={"Cochlea_L": 1})


@pytest.mark.parametrize("seed", SEEDS)
def test_tissues_have_their_hu(patients: dict[int, Drawn], seed: int) -> None:
    generated = patients[seed]
    ct, label = generated
    assert abs(np.median(ct.array_hu[:, :6]) + 1000) < 10  # air before the nose
    assert hu_inside(generated, "Bone_Mandible").mean() > 500
    parotid = np.concatenate([hu_inside(generated, f"Parotid_{side}") for side in "LR"])
    assert -40 < np.median(parotid) < 45
    assert 25 < np.median(hu_inside(generated, "SpinalCord")) < 50
    assert 20 < np.median(hu_inside(generated, "Brainstem")) < 40
    # Muscle: the deep muscles of the neck, 30 mm behind the cord and 20 mm beside it.
    z = int(np.argwhere(mask_of(label, "Larynx"))[:, 2].mean())
    x, y = np.argwhere(mask_of(label, "SpinalCord")[:, :, z]).mean(axis=0).round().astype(int)
    muscle = ct.array_hu[x + 4 : x + 7, y + 6 : y + 9, z]
    assert np.median(muscle) > np.median(parotid) + 15
    assert ct.array_hu[mask_of(label, "Larynx")].min() < -800  # its airway


def test_a_finer_grid_has_the_same_patient(patients: dict[int, Drawn]) -> None:
    _, fine = head_and_neck_phantom(
        0, grid_shape=(170, 205, 80), spacing_mm=(512 / 170, 2.5, 3.0), labels=ALL
    )
    coarse_ml, fine_ml = patients[0][1].volumes_ml(), fine.volumes_ml()
    for name in DRAWN:
        if fine_ml[name] > 5:
            assert fine_ml[name] == pytest.approx(coarse_ml[name], rel=0.1)
        distance = centre_ras(fine, name) - centre_ras(patients[0][1], name)
        assert np.abs(distance).max() < 1.5


POINTS = tuple(np.array([axis], np.float32) for axis in (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("shape", "expected_mm"),
    [
        (Ellipsoid((10, 0, 0), (4, 4, 4)), 6.0),  # a ball of 4 mm, 10 mm away
        (Ellipsoid((0, 10, 0), (3, 6, 3), yaw_deg=90), 7.0),  # its long axis turned away
        (Ellipsoid((0, 10, 0), (3, 3, 6), pitch_deg=90), 4.0),  # its long axis turned toward us
        (Tube([(-5, 8, 0), (5, 8, 0)], [2]), 6.0),  # a line 8 mm in front
        (Tube([(-5, 8, 0), (5, 8, 0)], [2], (1, 2, 1)), 2.0),  # 4 mm to go, in a tube twice as wide
        (Column([(-9, 2, 3, 7), (9, 2, 3, 7)]), 3.0),  # its back lies at a = 3
        (Column([(-9, 2, 3, 7), (9, 2, 3, 7)]).grown(1.0), 2.0),
        (Column([(4, 9, -9, 9), (9, 9, -9, 9)]), 4.0),  # its lower end
        (Union([Ellipsoid((10, 0, 0), (4, 4, 4)), Ellipsoid((0, 9, 0), (4, 4, 4))]), 5.0),
        (Difference(Ellipsoid((1, 0, 0), (4, 4, 4)), Ellipsoid((1, 0, 0), (3, 3, 3)), 0.5), 2.5),
        (Intersection(Ellipsoid((1, 0, 0), (4, 4, 4)), Ellipsoid((1, 0, 0), (9, 9, 9)), 8), 0.0),
    ],
)
def test_the_distance_to_the_surface_is_returned(shape: Shape, expected_mm: float) -> None:
    points = (POINTS[0], POINTS[1], POINTS[2])
    np.testing.assert_allclose(shape.distance(points), [expected_mm], atol=1e-3)


TINY = Recipe(
    name="tiny",
    organ_set="openkbp",
    spacing_mm=(9.9, 10.1, 6.1),
    hu_windows=((-160.0, 240.0),),
    crop_vox=(16, 16, 16),
    network=NetworkConfig(width=4),
)


def write(folder: Path, *, seed: int = 5, cases: int = 4) -> list[str]:
    return write_cohort(folder, recipe=TINY, cases=cases, labelled=2, seed=seed)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_cohort_has_the_layout_of_a_studies_folder(tmp_path: Path) -> None:
    assert write(tmp_path) == ["demo_001", "demo_002", "demo_003", "demo_004"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "demo_001.nii.gz", "demo_002.nii.gz", "demo_003.nii.gz", "demo_004", "labels",
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "labels" / "final").iterdir()) == [
        "demo_001.nii.gz",
        "demo_002.nii.gz",
    ]
    ct = read_ct(tmp_path / "demo_001.nii.gz")
    assert ct.grid.shape_vox == (51, 51, 40)
    np.testing.assert_allclose(ct.grid.spacing_mm, (10.0, 10.0, 6.0))
    label, _ = read_label(
        tmp_path / "labels/final/demo_001.nii.gz", image_id="demo_001", image_grid=ct.grid
    )
    assert set(np.unique(label)) == set(range(8))


def test_the_dicom_case_reads_back_to_the_same_voxels(tmp_path: Path) -> None:
    write(tmp_path)
    ct = read_ct(tmp_path / "demo_004")
    generated, _ = head_and_neck_phantom(
        50_003, grid_shape=(51, 51, 40), spacing_mm=(10.0, 10.0, 6.0), labels=TINY.labels
    )
    assert ct.grid.is_same_as(generated.grid)
    np.testing.assert_array_equal(ct.array_hu, generated.array_hu)


def test_a_second_call_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    before = times(tmp_path)
    write(tmp_path)
    assert times(tmp_path) == before


def test_a_damaged_cohort_is_repaired_and_a_submitted_label_remains(tmp_path: Path) -> None:
    write(tmp_path)
    image, final = tmp_path / "demo_001.nii.gz", tmp_path / "labels" / "final"
    image.write_bytes(image.read_bytes()[:500])
    next((tmp_path / "demo_004").iterdir()).write_bytes(b"")
    (final / "demo_001.nii.gz").write_bytes(b"")
    _, other = head_and_neck_phantom(
        50_001, grid_shape=(51, 51, 40), spacing_mm=(10.0, 10.0, 6.0), labels={"Larynx": 6}
    )
    write_label(final / "demo_002.nii.gz", other)  # a user's correction
    remaining = times(final)[final / "demo_002.nii.gz"]
    write(tmp_path)
    ct = read_ct(image)
    assert read_ct(tmp_path / "demo_004").grid.shape_vox == ct.grid.shape_vox
    assert read_label(final / image.name, image_id="demo_001", image_grid=ct.grid)[0].any()
    assert times(final)[final / "demo_002.nii.gz"] == remaining
    assert not list(tmp_path.glob(".writing-*"))


def test_another_cohort_in_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DatastoreError, match=r"demo_001: .* holds another image of this name"):
        write(tmp_path, seed=6)


def test_contradicting_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 cases cannot hold 2 labelled and 1 DICOM cases"):
        write(tmp_path, cases=2)


@pytest.mark.parametrize(
    ("recipe", "shape_vox"), [(OPENKBP, (128, 128, 96)), (PDDCA, (360, 360, 96))]
)
def test_the_grid_follows_the_recipe(recipe: Recipe, shape_vox: tuple[int, int, int]) -> None:
    assert voxel_grid(recipe)[0] == shape_vox
