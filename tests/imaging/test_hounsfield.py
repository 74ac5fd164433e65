"""Volumes with the histogram of a patient: known shares of air, lung, fat, soft tissue and bone, with noise."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.errors import ScanError
from lib.imaging import hounsfield
from lib.imaging.hounsfield import HuCheck, require_hu
from lib.imaging.scans import read_ct
from lib.recipes.schema import OPENKBP
from phantom import head_and_neck_phantom
from tests.phantoms import make_ct

Array = np.ndarray[Any, np.dtype[Any]]

SIDE_VOX, DEPTH_VOX = 64, 12
TISSUES = [
    (-1000, 0.03),
    (-700, 0.03),
    (-100, 0.25),
    (40, 0.55),
    (600, 0.1),
    (1000, 0.03),
    (1800, 0.01),
]
"""HU and share within the body: airways, lung, fat, muscle, spongy and dense bone, teeth."""


def circle(radius: float) -> Array:
    """Return a disc `(X, Y)` around the centre; `radius` as a share of half the side."""
    x, y = np.mgrid[:SIDE_VOX, :SIDE_VOX] - (SIDE_VOX - 1) / 2
    return np.asarray(np.hypot(x, y) < radius * SIDE_VOX / 2)


def patient(*, body: float = 0.55, noise_hu: float = 20) -> Array:
    """Return a patient in air, `(X, Y, Z)`, float; the body has the shares of `TISSUES`."""
    rng = np.random.default_rng(0)
    array = np.full((SIDE_VOX, SIDE_VOX, DEPTH_VOX), -1000.0)
    inside = np.repeat(circle(body)[:, :, None], DEPTH_VOX, axis=2)
    values, shares = np.array(TISSUES).T
    array[inside] = rng.choice(values, inside.sum(), p=shares / shares.sum())
    # Half of a border of two tissues is a mixture of both.
    array = (array + np.roll(array, 1, axis=0) + 2 * array) / 4
    return np.asarray(array + rng.normal(0, noise_hu, array.shape))


def filled(array: Array, value: float) -> Array:
    """Return a volume with `value` outside the field of view."""
    result = array.copy()
    result[~circle(0.97)] = value
    return result


def patient_with_fill(value: float, lost_hu: float = 0) -> Array:
    """Return a patient without the intercept's `lost_hu`, and `value` outside the field of view."""
    return filled(patient() + lost_hu, value)


def shifted(name: str, lost_hu: float) -> Array:
    """Return one of `GOOD` without the intercept's `lost_hu`."""
    return np.asarray(GOOD[name]() + lost_hu)


FILLS = [-3024, -2000, -1024, -1000, 0]
GOOD: dict[str, Callable[[], Array]] = {
    "patient": patient,
    "head in a large field of view": lambda: patient(body=0.2),
    "shoulders": lambda: patient(body=0.95),
    "noise of a cone-beam CT": lambda: patient(noise_hu=120),
    "without noise": lambda: patient(noise_hu=0),
    "clipped": lambda: np.clip(patient(), -1024, 3071),
    "whole numbers": lambda: np.rint(patient()).astype(np.int16),
    "float32": lambda: patient().astype(np.float32),
    "crop without air": lambda: patient(body=1.0)[24:40, 24:40].clip(-190),
    "body cut out": lambda: np.where(circle(0.54)[:, :, None], patient(), -1024),
    "metal": lambda: np.where(np.arange(SIDE_VOX)[:, None, None] == 30, 30_000, patient()),
    "contrast": lambda: np.where(np.arange(SIDE_VOX)[:, None, None] == 30, 350, patient()),
    "phantom of constant tissues": lambda: make_ct().array_hu,
    **{f"fill {v}": partial(patient_with_fill, v) for v in FILLS},
}
BAD: dict[str, Callable[[], Array]] = {
    "unsigned": lambda: np.where(patient() < -1010, 64_000, patient()),
    "inverted": lambda: -patient() + 5000,
    "8 bits": lambda: np.clip((patient() + 160) * 255 / 400, 0, 255),
    "0 to 1": lambda: np.clip((patient() + 1000) / 2000, 0, 1),
    "-1 to 1": lambda: np.clip(patient() / 1000, -1, 1),
    "windowed": lambda: np.clip(patient(), -160, 240),
    "bright air": lambda: np.where(patient() < -900, 3090, patient()),
    **{f"{name} + {lost}": partial(shifted, name, lost)
       for lost in (1000, 1024) for name in GOOD if not name.startswith(("fill", "phantom"))},
    **{f"fill {v}, then + {lost}": partial(patient_with_fill, v, lost)
       for lost in (1000, 1024) for v in FILLS},
    **{f"{name} {wrong:+}": partial(shifted, name, wrong)
       for wrong in (-1024, -500, -300, 300, 500)
       for name in ("patient", "head in a large field of view", "whole numbers", "clipped")},
    **{f"fill {v}, then -1024": partial(patient_with_fill, v, -1024) for v in FILLS},
    "half": lambda: patient() / 2,
    "half above -1024": lambda: (patient() + 1024) / 2 - 1024,
    "head + 1024, fill": lambda: filled(patient(body=0.2) + 1024, -1000),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_ct_in_hu_is_accepted(name: str) -> None:
    require_hu(GOOD[name](), "case7")


@pytest.mark.parametrize("name", BAD)
def test_a_volume_that_is_not_in_hu_is_refused(name: str) -> None:
    with pytest.raises(ScanError, match=r"case7: values run from .* not a CT in HU; the rescale"):
        require_hu(BAD[name](), "case7")


@pytest.mark.parametrize("name", [*GOOD, *BAD])
@pytest.mark.parametrize("count", [1, 5])
def test_slices_one_after_the_other_are_judged_as_the_whole_volume(name: str, count: int) -> None:
    def verdict(step: int) -> tuple[float, str]:
        check = HuCheck(array.shape, "case7")
        for start in range(0, array.shape[2], step):
            check.add(array[:, :, start : start + step])
        try:
            return check.finish(), ""
        except ScanError as error:
            return float(array.min()), str(error)

    array = (GOOD | BAD)[name]()
    assert verdict(count) == verdict(array.shape[2])
    assert (verdict(count)[1] == "") == (name in GOOD)


def test_sample_and_means_do_not_depend_on_the_parts_of_a_large_volume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hounsfield, "_SAMPLE_VOX", 4000)
    monkeypatch.setattr(hounsfield, "_SMOOTHED_SIDE_VOX", 16)
    monkeypatch.setattr(hounsfield, "_SMOOTHED_SLICES", 4)
    array = np.asfortranarray(np.rint(patient()).astype(np.int16))
    check = HuCheck(array.shape, "case7")
    for start in range(0, DEPTH_VOX, 5):
        check.add(array[:, :, start : start + 5])
    # 64 x 64 x 12 voxels are 12.3 times the sample: every 4th row of every 4th slice (3.5 rounded).
    sample = array[:, ::4, ::4]
    for value in range(-1100, 1900):
        assert check._values.share(value, value) == pytest.approx(np.mean(sample == value))
    # 64 x 64 is 4 x 4 times 16 x 16, and 12 slices are 3 times 4.
    means = array[:, :, ::3].reshape(16, 4, 16, 4, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(np.concatenate(check._smoothed, axis=2), means, rtol=1e-6)


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4"])
def test_extreme_numbers_of_every_type_are_judged(kind: str) -> None:
    limits = np.finfo(kind) if kind == "f4" else np.iinfo(kind)
    array = np.full((9, 9, 9), 40, kind)
    array[0], array[1] = limits.min, limits.max
    with pytest.raises(ScanError, match=r"case7: values run from .* not a CT in HU"):
        require_hu(array, "case7")


@pytest.mark.parametrize("shape", [(2**21, 1, 8), (1, 2**21, 8), (8, 1, 2**21)])
def test_volume_of_an_odd_shape_is_judged(shape: tuple[int, int, int]) -> None:
    array = np.zeros(shape, np.int16, order="F")
    array[-1, -1, -1] = 1
    with pytest.raises(ScanError, match=r"case7: .*none lies between -1024 and -200"):
        require_hu(array, "case7")


def test_doubled_values_are_refused_unless_noise_hides_them() -> None:
    hu = head_and_neck_phantom(0, labels=OPENKBP.labels)[0].array_hu
    for doubled in (2 * hu, np.clip(2 * hu, -1024, 3071), (2 * hu).repeat(2, axis=0)):
        with pytest.raises(ScanError, match=r"of fat lies near -200, .* slope was applied twice"):
            require_hu(doubled, "case7")
    noise = np.random.default_rng(0).normal(0, 60, hu.shape)
    for right in (hu, hu + noise, hu.repeat(2, axis=1), hu[32:96, 32:96]):
        require_hu(right, "case7")


def test_a_constant_volume_is_refused() -> None:
    with pytest.raises(ScanError, match=r"case7: every voxel is 40; the image is empty"):
        require_hu(np.full((9, 9, 9), 40), "case7")


def test_real_scans_are_accepted_and_refused_without_their_intercept(shared_data: Path) -> None:
    for case in ("pt_1", "pt_88"):
        array = read_ct(shared_data / "openkbp" / case / "ct.nii.gz").array_hu
        require_hu(filled_like(array, 0), "case7")
        if case == "pt_88":
            with pytest.raises(ScanError, match="the rescale slope was applied twice"):
                require_hu(2 * array, "case7")
        for fill in FILLS:
            with pytest.raises(ScanError, match="not a CT in HU"):
                require_hu(filled_like(array + 1024, fill), "case7")
            with pytest.raises(ScanError, match="not a CT in HU"):
                require_hu(filled_like(array - 1024, fill), "case7")


def filled_like(array: Array, value: int) -> Array:
    result = array.copy()
    result[:4], result[-4:] = value, value
    return result
