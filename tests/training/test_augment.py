"""Augmentations of training crops, on synthetic volumes; metal fillings are in `test_metal.py`."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils.data import DataLoader

from lib.imaging.quantities import ShapeVox, SpacingMm
from lib.organs.table import mirror_values
from lib.recipes.schema import OPENKBP, AugmentConfig
from lib.training import augment as aug
from lib.training.augment import AIR_HU, MAX_HU, Crop, Hu, RandomStreams, Warp
from lib.training.cases import PreparedCase
from lib.training.crops import CropDataset

SPACING_MM: SpacingMm = (3.0, 3.0, 2.5)
CROP_VOX: ShapeVox = (40, 40, 32)
CORD, PAROTID_R, PAROTID_L, MANDIBLE = 2, 3, 4, 7
MIRRORED = np.array(mirror_values(OPENKBP.labels))
PROBABILITIES = [f.name for f in fields(AugmentConfig) if f.name.endswith("_probability")]
NAMES = [name.removesuffix("_probability") for name in PROBABILITIES]
OFF = replace(AugmentConfig(), **dict.fromkeys(PROBABILITIES, 0.0))  # type: ignore[arg-type]
ON = replace(AugmentConfig(), **dict.fromkeys(PROBABILITIES, 1.0))  # type: ignore[arg-type]
SPATIAL = replace(
    OFF,
    rotation_probability=1.0,
    zoom_probability=1.0,
    elastic_probability=1.0,
    mirror_probability=0.5,
    elastic_mm=12.8,
)


def only(name: str, **sizes: float) -> AugmentConfig:
    chosen: dict[str, float] = {f"{name}_probability": 1.0, **sizes}
    return replace(OFF, **chosen)  # type: ignore[arg-type]


def head() -> PreparedCase:
    """Return a round body of 40 HU in 64 x 64 x 48 voxels, x to the right, with cord, right parotid and jaw.

    The jaw has 700 HU; the left parotid is missing.
    """
    x, y, z = np.indices((64, 64, 48))
    hu = np.where((x - 32) ** 2 + (y - 32) ** 2 < 26**2, 40, -1000).astype(np.int16)
    label = np.zeros(hu.shape, np.uint8)
    label[(x - 32) ** 2 + (y - 22) ** 2 < 4**2] = CORD
    label[(x - 46) ** 2 + (y - 30) ** 2 + ((z - 24) * 0.8) ** 2 < 8**2] = PAROTID_R
    label[(abs(x - 32) < 12) & (abs(y - 48) < 4) & (abs(z - 20) < 6)] = MANDIBLE
    hu[label > 0] = 700
    points = {v: np.argwhere(label == v).astype(np.int32) for v in (CORD, PAROTID_R, MANDIBLE)}
    return PreparedCase("head", "digest", hu, label, points)


def crops_of(case: PreparedCase, config: AugmentConfig, *, seed: int = 0) -> CropDataset:
    recipe = replace(OPENKBP, spacing_mm=SPACING_MM, crop_vox=CROP_VOX, augment=config)
    return CropDataset([case], recipe, seed=seed, length=1000)


def make_crop(seed: int = 0) -> Crop:
    rng = np.random.default_rng(seed)
    hu = np.clip(rng.normal(100, 300, CROP_VOX), -1000, 3000).astype(np.float32)
    label = rng.integers(0, 8, CROP_VOX).astype(np.uint8)
    return Crop(hu=hu, label=label, contoured=np.ones(8, bool), spacing_mm=SPACING_MM)


def run(crop: Crop, config: AugmentConfig, *, seed: int = 0) -> Crop:
    return aug.augment(
        crop,
        RandomStreams(seed, 0),
        config,
        mirrored=MIRRORED,
        mandible=OPENKBP.labels["Bone_Mandible"],
    )


def assert_same(one: Crop, other: Crop) -> None:
    assert one.hu.tobytes() == other.hu.tobytes()
    assert np.array_equal(one.label, other.label)
    assert np.array_equal(one.contoured, other.contoured)


def test_a_crop_with_every_probability_at_0_is_cut_out_of_the_case() -> None:
    case = head()
    crop = crops_of(case, OFF).crop(3)
    assert crop.hu.shape == CROP_VOX
    middle_vox = np.array(CROP_VOX) / 2 - 0.5
    warp = aug.draw_warp(CROP_VOX, SPACING_MM, RandomStreams(0, 3), OFF)
    np.testing.assert_array_equal(warp.matrix, np.eye(3))
    np.testing.assert_array_equal(warp.reach_vox, middle_vox + 1.5)
    assert warp.field is None
    assert_same(run(make_crop(), OFF), make_crop())


@pytest.mark.parametrize("name", NAMES)
def test_probability_0_switches_one_augmentation_off_and_does_not_change_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = crops_of(head(), replace(ON, **{f"{name}_probability": 0.0}))  # type: ignore[arg-type]
    result = without.crop(7)
    changes_nothing: dict[str, Callable[..., object]] = {
        "rotation": lambda *_: np.zeros(3),
        "zoom": lambda *_: np.ones(3),
        "elastic": lambda *_: None,
    }
    functions = {
        "rotation": "draw_angles",
        "zoom": "draw_zoom",
        "elastic": "elastic_field",
        "metal": "add_fillings",
        "thick_slice": "thick_slices",
        "field_of_view": "cut_field_of_view",
    }
    assert not np.array_equal(crops_of(head(), ON).crop(7).hu, result.hu)
    monkeypatch.setattr(
        aug, functions.get(name, name), changes_nothing.get(name, lambda first, *_: first)
    )
    assert_same(crops_of(head(), ON).crop(7), result)


def test_every_variation_has_a_stream_and_a_probability() -> None:
    assert set(aug.STREAMS) == {"place", *NAMES}


def test_a_crop_depends_on_seed_and_number_alone_with_any_number_of_workers() -> None:
    data = crops_of(head(), ON)
    loaded = [
        list(DataLoader(torch.utils.data.Subset(data, range(8)), 2, num_workers=workers))
        for workers in (0, 2)
    ]
    for one, other in zip(*loaded, strict=True):
        for here, there in zip(one, other, strict=True):
            assert torch.equal(here, there)
    assert_same(data.crop(5), crops_of(head(), ON).crop(5))
    assert not np.array_equal(data.crop(5).hu, crops_of(head(), ON, seed=1).crop(5).hu)


@pytest.mark.parametrize("number", range(12))
def test_hu_stay_on_the_scanners_scale_with_everything_on(number: int) -> None:
    data = crops_of(head(), ON)
    crop = data.crop(number)
    assert crop.hu.dtype == np.float32
    assert np.isfinite(crop.hu).all()
    assert crop.hu.min() >= AIR_HU
    assert crop.hu.max() <= MAX_HU
    image, label, contoured = data[number]
    assert (image.shape, label.dtype, contoured.dtype) == ((2, *CROP_VOX), torch.int64, torch.bool)
    assert float(image.abs().max()) <= 1


@pytest.mark.parametrize("number", range(12))
def test_organs_and_their_brightness_are_moved_alike(number: int) -> None:
    crop = crops_of(head(), SPATIAL).crop(number)
    # The organ's surface is at the HU halfway between body and organ.
    bright, mask = crop.hu > 370, crop.label > 0
    assert mask.sum() > 200
    assert 2 * (bright & mask).sum() / (bright.sum() + mask.sum()) > 0.95


@pytest.mark.parametrize("config", [SPATIAL, ON], ids=["spatial", "everything"])
def test_left_stays_left_and_right_stays_right(config: AugmentConfig) -> None:
    data = crops_of(head(), replace(config, mirror_probability=0.5, field_of_view_probability=0.0))
    seen = set()
    for number in range(24):
        crop = data.crop(number)
        side = PAROTID_R if crop.contoured[PAROTID_R] else PAROTID_L
        assert crop.contoured[PAROTID_R] != crop.contoured[PAROTID_L]
        assert {PAROTID_L, PAROTID_R} & set(np.unique(crop.label).tolist()) <= {side}
        if (crop.label == side).sum() > 100 and (crop.label == CORD).sum() > 100:
            from_cord_vox = np.argwhere(crop.label == side).mean(axis=0) - np.argwhere(
                crop.label == CORD
            ).mean(axis=0)
            # x runs to the patient's right.
            assert (from_cord_vox[0] > 5) == (side == PAROTID_R)
            assert abs(from_cord_vox[0]) > 5
            seen.add(side)
    assert seen == {PAROTID_L, PAROTID_R}


def test_mirroring_twice_changes_nothing() -> None:
    crop, config = make_crop(), only("mirror")
    rng = np.random.default_rng(0)
    once = aug.mirror(crop, MIRRORED, rng, config)
    np.testing.assert_array_equal(once.hu, crop.hu[::-1])
    assert_same(aug.mirror(once, MIRRORED, rng, config), crop)


def jacobian(field: Hu) -> npt.NDArray[np.float64]:
    """Return the determinant of `x -> x + field(x)` between voxel centres."""
    gradient = np.stack([np.stack(np.gradient(f), axis=-1) for f in field], axis=-2)
    return np.asarray(np.linalg.det(gradient + np.eye(3)))


@pytest.mark.parametrize("seed", range(4))
def test_the_strongest_elastic_deformation_does_not_fold_tissue(seed: int) -> None:
    config = only("elastic", elastic_mm=12.8, elastic_grid_mm=32.0)
    field = aug.elastic_field((64, 64, 48), (2.0, 2.0, 2.5), np.random.default_rng(seed), config)
    assert field is not None
    assert field.shape == (3, 64, 64, 48)
    assert np.abs(field).max() <= 12.8 / 2
    assert jacobian(field).min() > 0
    # Every control point at its largest displacement, with the worst patterns of signs and at random.
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (3, 9, 9, 9))
    if seed == 0:
        signs[:] = (-1.0) ** np.indices((9, 9, 9)).sum(axis=0)
    weights = [aug._spline_weights(60, 0.1)] * 3
    worst = aug.spline_field((signs * 4).astype(np.float32), weights)
    assert jacobian(worst).min() > 0


def test_equal_control_points_shift_all_voxels_equally() -> None:
    weights = [aug._spline_weights(size, 0.3) for size in (7, 8, 9)]
    control = np.ones((3, *(w.shape[1] for w in weights)), np.float32)
    control *= np.reshape([1, -2, 3], (3, 1, 1, 1))
    field = aug.spline_field(control, weights)
    for axis, expected in enumerate((1, -2, 3)):
        np.testing.assert_allclose(field[axis], expected, rtol=1e-5)


def test_the_control_grid_is_in_mm() -> None:
    config = only("elastic")
    coarse = aug.elastic_field((17, 17, 17), (4.0, 4.0, 4.0), np.random.default_rng(0), config)
    fine = aug.elastic_field((33, 33, 33), (2.0, 2.0, 2.0), np.random.default_rng(0), config)
    assert coarse is not None
    assert fine is not None
    np.testing.assert_allclose(fine[:, ::2, ::2, ::2] * 2, coarse * 4, atol=1e-4)


def test_the_reach_of_a_warp_covers_every_voxel_it_reads() -> None:
    for number in range(6):
        warp: Warp = aug.draw_warp(CROP_VOX, SPACING_MM, RandomStreams(0, number), SPATIAL)
        assert np.linalg.det(warp.matrix) > 0
        half = (np.array(CROP_VOX) - 1) / 2
        offsets = np.indices(CROP_VOX) - half.reshape(3, 1, 1, 1)
        assert warp.field is not None
        where = np.tensordot(warp.matrix, offsets + warp.field, 1)
        assert (np.abs(where).max(axis=(1, 2, 3)) <= warp.reach_vox).all()


def moment_mm(response: Hu, axis: int) -> float:
    """Return the standard deviation of a point's image along `axis`, in mm."""
    place_mm = (np.arange(response.shape[axis]) - response.shape[axis] // 2) * SPACING_MM[axis]
    profile = response.sum(axis=tuple({0, 1, 2} - {axis}))
    return float(np.sqrt((profile * place_mm**2).sum() / profile.sum()))


def test_a_blurred_point_has_the_drawn_width_in_mm() -> None:
    point = np.zeros((41, 41, 41), np.float32)
    point[20, 20, 20] = 1000
    generator = np.random.default_rng(1)
    generator.random()
    plane_mm, z_mm = generator.random(2) * 12
    result = aug.blur(point, SPACING_MM, np.random.default_rng(1), only("blur", blur_mm=12.0))
    for axis, expected in enumerate((plane_mm, plane_mm, z_mm)):
        assert moment_mm(result, axis) == pytest.approx(expected, rel=0.05)
    assert result.sum() == pytest.approx(1000, rel=1e-3)


def test_sharpening_steepens_an_edge_in_the_plane_and_leaves_flat_tissue() -> None:
    edge = np.zeros(CROP_VOX, np.float32)
    edge[20:] = 100
    result = aug.sharpen(edge, SPACING_MM, np.random.default_rng(0), only("sharpen", blur_mm=3.0))
    assert result[20].min() > 100
    assert result[19].max() < 0
    np.testing.assert_allclose(result[[0, -1]], edge[[0, -1]], atol=1e-3)


def test_thick_slices_average_along_z_and_leave_the_plane() -> None:
    config = only("thick_slice", thick_slice_mm=20.0)
    steady = np.random.default_rng(0).normal(0, 100, (8, 8, 1)).astype(np.float32)
    flat = np.repeat(steady, 32, axis=2)
    plate = np.zeros((8, 8, 32), np.float32)
    plate[:, :, 16] = 1000
    for seed in range(6):
        unchanged = aug.thick_slices(flat, SPACING_MM, np.random.default_rng(seed), config)
        np.testing.assert_allclose(unchanged, flat, rtol=1e-4, atol=1e-2)
        spread = aug.thick_slices(plate, SPACING_MM, np.random.default_rng(seed), config)
        assert (spread == spread[:1, :1]).all()
        assert 100 < spread.max() < 1000
        assert spread[0, 0].sum() == pytest.approx(1000, rel=0.6)


def test_already_thick_slices_are_not_changed() -> None:
    hu = make_crop().hu
    config = only("thick_slice", thick_slice_mm=2.5)
    assert aug.thick_slices(hu, SPACING_MM, np.random.default_rng(0), config) is hu


def test_scale_offset_and_noise_stay_within_their_sizes() -> None:
    hu = make_crop().hu
    for seed in range(8):
        moved = aug.shift(hu, np.random.default_rng(seed), only("shift", shift_hu=30.0)) - hu
        assert np.ptp(moved) < 1e-3
        assert abs(moved.mean()) <= 30
        scaled = aug.contrast(hu, np.random.default_rng(seed), only("contrast")) / hu
        assert abs(scaled.mean() - 1) <= 0.08
        noisy = aug.noise(hu, np.random.default_rng(seed), only("noise", noise_hu=40.0)) - hu
        assert noisy.std() < 41
        assert abs(noisy.mean()) < 1


@pytest.mark.parametrize("seed", range(16))
def test_outside_the_scan_is_air_without_organs(seed: int) -> None:
    crop = make_crop()
    config = only("field_of_view", field_of_view_mm=1000.0)
    cut = aug.cut_field_of_view(crop, np.random.default_rng(seed), config)
    outside = cut.hu == AIR_HU
    assert (cut.label[outside] == 0).all()
    np.testing.assert_array_equal(cut.hu[~outside], crop.hu[~outside])
    np.testing.assert_array_equal(cut.label[~outside], crop.label[~outside])
    # An organ outside the scan is absent, not unknown, and some part of the crop always remains.
    np.testing.assert_array_equal(cut.contoured, crop.contoured)
    assert 0.2 < 1 - outside.mean() < 1
    in_plane = outside.all(axis=2)
    by_slice = outside.all(axis=(0, 1))
    assert in_plane.any() != by_slice.any()


def test_the_edge_of_the_scan_is_within_its_limit() -> None:
    crop = make_crop()
    config = only("field_of_view", field_of_view_mm=9.0)
    for seed in range(20):
        cut = aug.cut_field_of_view(crop, np.random.default_rng(seed), config)
        # 9 mm are 3 voxels in the plane; an arc deviates from its middle only at the corners.
        inner = cut.hu[12:-12, 12:-12, 4:-4]
        np.testing.assert_array_equal(inner, crop.hu[12:-12, 12:-12, 4:-4])


def test_a_crop_without_movement_has_the_scans_voxels() -> None:
    case = head()
    numbered = np.arange(case.hu.size, dtype=np.int64).reshape(case.hu.shape)
    # Each voxel's value nearly encodes its position.
    case = replace(case, hu=(numbered % 3011).astype(np.int16))
    for number in range(20):
        crop = crops_of(case, replace(OFF, contrast=0.0)).crop(number)
        inside = crop.hu[crop.hu != AIR_HU]
        assert np.array_equal(inside, np.round(inside))
        x, y, z = (int(i) for i in np.argwhere(crop.hu != AIR_HU)[0])
        steps = np.argwhere(case.hu == crop.hu[x, y, z])
        assert any(
            np.array_equal(
                crop.hu[x : x + 4, y : y + 4, z : z + 4],
                case.hu[a : a + 4, b : b + 4, c : c + 4],
            )
            for a, b, c in steps
        )
