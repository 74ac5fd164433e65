from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.imaging.dicom_series import read_series
from lib.imaging.quantities import FloatArray
from tests.imaging.series_files import edit, phantom_series
from tests.phantoms import make_ct


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The upright phantom as a series of 12 files; its stored values are HU + 1024, signed."""
    return phantom_series(tmp_path / "series")


def read(folder: Path) -> FloatArray:
    return np.asarray(read_series(folder, image_id="case7")[0])


def test_padding_becomes_air(folder: Path) -> None:
    def pad(_: int, dataset: Any) -> None:
        stored = dataset.pixel_array.copy()
        stored[:2, :3] = 3000
        stored[2, :3] = -500
        dataset.PixelData = stored.tobytes()
        dataset.add_new("PixelPaddingValue", "SS", 3000)

    edit(folder, pad)
    expected = make_ct().array_hu.copy()
    expected[:3, :2] = -1024
    expected[:3, 2] = -1524
    np.testing.assert_array_equal(read(folder), expected)


@pytest.mark.parametrize(
    "padding",
    [{"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}, {"PixelPaddingValue": 63536}],
)
def test_padding_may_be_a_range_or_a_signed_value_stored_unsigned(
    folder: Path, padding: dict[str, int]
) -> None:
    def pad(_: int, dataset: Any) -> None:
        stored = dataset.pixel_array.copy()
        stored[0, 0] = -2000
        dataset.PixelData = stored.tobytes()
        for keyword, value in padding.items():
            dataset.add_new(keyword, "US" if value > 32767 else "SS", value)

    edit(folder, pad)
    array = read(folder)
    assert (array[0, 0] == -1024).all()
    np.testing.assert_array_equal(array[1:], make_ct().array_hu[1:])


def store(folder: Path, vr: str, value: object, *, stored_yx: FloatArray | None = None) -> None:
    """Store the phantom with intercept 0, and a PixelPaddingValue; the pixels of a slice may be replaced."""

    def change(_: int, dataset: Any) -> None:
        pixels = dataset.pixel_array.astype(np.int16) - 1024 if stored_yx is None else stored_yx
        dataset.PixelData = pixels.astype("<i2").tobytes()
        dataset.RescaleIntercept = "0"
        dataset.add_new("PixelPaddingValue", vr, value)

    edit(folder, change)


@pytest.mark.parametrize(
    ("vr", "value"),
    [("US", None), ("SS", [-2000, 40]), ("OW", b"abcdef"), ("LO", "none"), ("SS", [])],
)
def test_a_padding_value_of_unclear_meaning_is_ignored(
    folder: Path, vr: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        store(folder, vr, value)
        np.testing.assert_array_equal(read(folder), make_ct().array_hu)


@pytest.mark.parametrize(
    ("vr", "value"),
    [("SS", -2000), ("SS", [-2000, -2000]), ("OW", b"\x30\xf8"), ("US", 63536), ("IS", "-2000")],
)
def test_a_padding_value_of_odd_form_is_read_if_its_meaning_is_clear(
    folder: Path, vr: str, value: object
) -> None:
    stored = np.full((16, 20), 40)
    stored[3:5, 7:9] = -2000  # away from the corners: nothing measured is below -1024 HU
    store(folder, vr, value, stored_yx=stored)
    array = read(folder)
    assert (array[7:9, 3:5] == -1024).all()
    assert (array == 40).sum() == (16 * 20 - 4) * 12


def test_tissue_that_has_the_padding_value_is_kept(folder: Path) -> None:
    stored = np.full((16, 20), -1000)
    stored[4:12, 5:15] = 40
    stored[6:8, 6:9] = 0  # water
    store(folder, "SS", 0, stored_yx=stored)
    np.testing.assert_array_equal(read(folder), np.repeat(stored.T[:, :, None], 12, axis=2))


def test_padding_with_the_value_of_tissue_is_replaced_where_it_reaches_a_corner(
    folder: Path,
) -> None:
    stored = np.full((16, 20), -1000)
    stored[4:12, 5:15] = 40
    stored[6:8, 6:9] = 0  # water
    expected = stored.copy()
    for corner in (np.s_[:3, :4], np.s_[-2:, -5:]):
        stored[corner], expected[corner] = 0, -1024
    store(folder, "SS", 0, stored_yx=stored)
    np.testing.assert_array_equal(read(folder), np.repeat(expected.T[:, :, None], 12, axis=2))


def test_a_range_of_padding_that_holds_tissue_is_ignored(folder: Path) -> None:
    def pad(_: int, dataset: Any) -> None:
        dataset.add_new("PixelPaddingValue", "SS", -2000)
        dataset.add_new("PixelPaddingRangeLimit", "SS", 1100)

    edit(folder, pad)
    np.testing.assert_array_equal(read(folder), make_ct().array_hu)


def test_padding_that_bits_stored_cannot_hold_is_replaced(folder: Path) -> None:
    """-2000 beside unsigned values of 12 bits: its lowest 12 bits are 2096."""

    def pad(_: int, dataset: Any) -> None:
        pixels = dataset.pixel_array.astype(np.uint16)
        pixels[:2, :3] = 63536
        dataset.PixelData = pixels.astype("<u2").tobytes()
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, 12, 11
        dataset.add_new("PixelPaddingValue", "US", 63536)

    edit(folder, pad)
    expected = make_ct().array_hu.copy()
    expected[:3, :2] = -1024
    np.testing.assert_array_equal(read(folder), expected)
