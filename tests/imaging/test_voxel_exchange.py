"""Voxels on their way from a reader process to the server: unpacked, copied from the file, or converted."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from lib.errors import LabelError, ScanError
from lib.imaging.geometry import Grid, to_sitk
from lib.imaging.scans import CT_DTYPE, read_ct, read_label
from lib.imaging.volume_reading import opened, read_volume_header
from lib.imaging.voxel_exchange import IN_FILE, received, send_voxels
from lib.isolation.array_transfer import ArrayStream
from tests.imaging.series_files import phantom_series
from tests.phantoms import make_ct

Array = np.ndarray[Any, np.dtype[Any]]

GRID = Grid((90, 80, 50), ((-1.0, 0.0, 0.0, 5.0), (0.0, -1.0, 0.0, 6.0), (0.0, 0.0, 2.5, -7.0)))
"""So many voxels that they are sent in several pieces."""
RNG = np.random.default_rng(28)
VOXELS = np.where(
    RNG.random(GRID.shape_vox) < 0.6,
    RNG.integers(-150, 150, GRID.shape_vox),
    RNG.integers(-1024, 1500, GRID.shape_vox),
).astype(np.int16)
LABEL = RNG.integers(0, 256, GRID.shape_vox).astype(np.uint8)
NAMES = ("raw.mha", "deflated.mha", "raw.nrrd", "deflated.nrrd", "plain.nii", "packed.nii.gz")


def write(path: Path, array: Array) -> Path:
    """Write a volume with SimpleITK or nibabel."""
    if ".nii" in path.name:
        nib.save(nib.Nifti1Image(array, GRID.affine_ras), path)  # type: ignore[no-untyped-call]
    else:
        sitk.WriteImage(to_sitk(array, GRID), str(path), path.name.startswith("deflated"))
    return path


def fill_freed_memory_with_a_pattern(size: int) -> None:
    """Leave the pattern 0x5a in memory that the next arrays get."""
    blocks = [np.full(size + extra, 0x5A, np.uint8) for extra in range(0, 4096, 256)]
    del blocks


def exchange(path: Path, meanwhile: Callable[[], object]) -> Array:
    """Return the voxels of a raw file that changes after its header was read."""
    with opened(path, "case7") as file:
        header = read_volume_header(file, path, "case7")
        assert header.has_plain(CT_DTYPE)
        place = send_voxels(file, header, CT_DTYPE, no_stream(), "case7")
    assert set(place) == {IN_FILE}
    meanwhile()
    return received(place, None, path=path, grid=header.grid, dtype=CT_DTYPE, case="case7")


def no_stream() -> ArrayStream:
    raise_always: Any = None
    return ArrayStream(raise_always, raise_always)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_voxels_of_a_ct_arrive_as_they_were_written(tmp_path: Path, name: str, dtype: str) -> None:
    ct = read_ct(write(tmp_path / name, VOXELS.astype(dtype)), image_id="case7")
    np.testing.assert_array_equal(ct.array_hu, VOXELS)
    assert ct.array_hu.dtype == np.int16
    np.testing.assert_allclose(ct.grid.affine_ras, GRID.affine_ras, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
def test_voxels_of_a_label_arrive_as_they_were_written(
    tmp_path: Path, name: str, dtype: str
) -> None:
    path = write(tmp_path / name, LABEL.astype(dtype))
    array, _ = read_label(path, image_id="case7", image_grid=None)
    np.testing.assert_array_equal(array, LABEL)
    assert array.dtype == np.uint8


@pytest.mark.parametrize("name", NAMES)
def test_values_below_air_are_raised_and_values_that_are_no_hu_are_refused(
    tmp_path: Path, name: str
) -> None:
    padded = VOXELS.copy()
    padded[:4] = -2000
    ct = read_ct(write(tmp_path / name, padded), image_id="case7")
    np.testing.assert_array_equal(ct.array_hu, np.where(padded == -2000, -1024, VOXELS))
    with pytest.raises(ScanError, match=r"case7: .*not a CT in HU"):
        read_ct(write(tmp_path / name, VOXELS + np.int16(1024)), image_id="case7")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", [1, 5000, 200_000])
def test_file_without_its_last_bytes_is_refused(tmp_path: Path, name: str, missing: int) -> None:
    path = write(tmp_path / name, VOXELS)
    os.truncate(path, path.stat().st_size - missing)
    fill_freed_memory_with_a_pattern(VOXELS.nbytes)
    with pytest.raises(ScanError, match=r"case7: .*truncated"):
        read_ct(path, image_id="case7")
    path = write(tmp_path / name, LABEL)
    os.truncate(path, path.stat().st_size - missing)
    fill_freed_memory_with_a_pattern(LABEL.nbytes)
    with pytest.raises(LabelError, match=r"case7: .*truncated"):
        read_label(path, image_id="case7", image_grid=None)


@pytest.mark.parametrize("name", ["raw.mha", "raw.nrrd", "plain.nii", "packed.nii.gz"])
def test_voxels_beyond_those_of_the_header_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, VOXELS)
    content = path.read_bytes()
    is_packed = name.endswith(".gz")
    path.write_bytes(
        gzip.compress(gzip.decompress(content) + b"\1") if is_packed else content + b"\1"
    )
    with pytest.raises(ScanError, match="case7: the file holds more voxels than the 360000"):
        read_ct(path, image_id="case7")


@pytest.mark.parametrize("name", ["raw.mha", "raw.nrrd", "plain.nii"])
def test_file_that_changes_after_its_header_was_read_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, VOXELS)
    np.testing.assert_array_equal(exchange(path, lambda: None), VOXELS)
    other = write(tmp_path / f"other-{name}", VOXELS)
    for change in (
        lambda: os.utime(path, ns=(1, 1)),
        lambda: path.write_bytes(path.read_bytes() + b"\0"),
        lambda: other.replace(path),
    ):
        with pytest.raises(ScanError, match=r"case7: .* changed while it was read; read it again"):
            exchange(path, change)
    with pytest.raises(ScanError, match=r"case7: .*No such file"):
        exchange(path, path.unlink)


@pytest.mark.parametrize("position", [-1, 2**80, 2**40, "0", None, 0.5])
def test_position_that_no_voxels_can_have_is_refused(tmp_path: Path, position: object) -> None:
    path = write(tmp_path / "plain.nii", VOXELS)
    place: dict[str, Any] = {IN_FILE: {"position": position, "state": []}}
    with pytest.raises(ScanError, match="case7: "):
        received(place, None, path=path, grid=GRID, dtype=CT_DTYPE, case="case7")


@pytest.mark.parametrize("number", [0, 5, 11])
def test_series_with_fractions_of_hu_in_one_slice_arrives_whole(
    tmp_path: Path, number: int
) -> None:
    folder = phantom_series(tmp_path / "series")
    expected = make_ct().array_hu.astype(np.float32)
    np.testing.assert_array_equal(read_ct(folder).array_hu, expected)
    paths = sorted(
        folder.iterdir(), key=lambda p: float(pydicom.dcmread(p).ImagePositionPatient[2])
    )
    dataset = pydicom.dcmread(paths[number])
    # Twice the stored value and 1 more, with half the slope: the slice is 0.5 HU higher.
    dataset.PixelData = (2 * dataset.pixel_array.astype(np.int16) + 1).tobytes()
    dataset.RescaleSlope = 0.5
    dataset.save_as(paths[number])
    expected[:, :, number] += 0.5
    np.testing.assert_array_equal(read_ct(folder).array_hu, expected)
