"""Scans and labels through the reader process, compared with what was written."""

import gzip
import os
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from lib.errors import GeometryError, LabelError, ReaderStoppedError, ScanError
from lib.imaging import scans
from lib.imaging.formats import SCAN_SUFFIXES
from lib.imaging.geometry import Grid, to_sitk
from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.imaging.volume_reading import opened, read_volume_header
from lib.imaging.volumes import LabelVolume
from tests.imaging.series_files import phantom_series
from tests.imaging.test_dicom_pixels import CODECS, write_as
from tests.phantoms import make_ct, make_label, make_oblique_ct

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


def test_series_in_every_transfer_syntax_is_read(tmp_path: Path) -> None:
    folder = phantom_series(tmp_path)
    for number, path in enumerate(sorted(folder.iterdir())):
        write_as(path, CODECS[number % len(CODECS)], path)
    for leftover in folder.glob("one.dcm"):
        leftover.unlink()
    ct = read_ct(folder, image_id="case7")
    np.testing.assert_array_equal(ct.array_hu, make_ct().array_hu)


def test_series_of_links_to_other_folders_is_read(tmp_path: Path) -> None:
    folder = phantom_series(tmp_path)
    links = tmp_path / "links"
    links.mkdir()
    for number, path in enumerate(folder.iterdir()):
        (links / f"{number}.dcm").symlink_to(path)
    np.testing.assert_array_equal(read_ct(links).array_hu, make_ct().array_hu)


def test_link_to_a_scan_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_ct(tmp_path / "a" / "scan.nrrd", make_ct())
    (tmp_path / "link.nrrd").symlink_to(tmp_path / "a" / "scan.nrrd")
    np.testing.assert_array_equal(read_ct(tmp_path / "link.nrrd").array_hu, make_ct().array_hu)


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
def test_label_and_its_grid_are_read(tmp_path: Path, suffix: str) -> None:
    ct = make_oblique_ct()
    label = make_label(ct.grid)
    write_label(tmp_path / f"label{suffix}", LabelVolume(label, ct.grid, {}))
    array, grid = read_label(
        tmp_path / f"label{suffix}", image_id="case7", image_grid=ct.grid, integers_only=True
    )
    np.testing.assert_array_equal(array, label)
    assert array.dtype == np.uint8
    assert grid.is_same_as(ct.grid)


def test_errors_of_labels_keep_their_class_and_text(tmp_path: Path) -> None:
    ct = make_ct()
    path = tmp_path / "label.nii.gz"
    write_label(path, LabelVolume(make_label(ct.grid), ct.grid, {}))
    with pytest.raises(GeometryError, match="case7: the label lies on"):
        read_label(path, image_id="case7", image_grid=make_oblique_ct().grid)
    write_ct(path, ct)
    with pytest.raises(LabelError, match="case7: label values run from"):
        read_label(path, image_id="case7", image_grid=None)


def test_names_of_files_may_have_any_letters(tmp_path: Path) -> None:
    for name in ("DOE^JOHN", "Müller", "病人3", "with space", "50%", "-x"):
        write_ct(tmp_path / f"{name}.nii", make_ct())
        assert read_ct(tmp_path / f"{name}.nii").image_id == name


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


@pytest.mark.parametrize("name", NAMES)
def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, VOXELS)
    other = write(tmp_path / f"other-{name}", VOXELS)
    for change in (
        lambda: os.utime(path, ns=(1, 1)),
        lambda: path.write_bytes(path.read_bytes() + b"\0"),
        lambda: other.replace(path),
    ):
        with (
            pytest.raises(ScanError, match=r"case7: .* changed while it was read; read it again"),
            opened(path, "case7"),
        ):
            change()
    with pytest.raises(ScanError, match=r"case7: .*No such file"), opened(path, "case7"):
        path.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_small_file_that_states_a_gigabyte_of_voxels_is_refused_by_its_header(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name, np.zeros((8, 8, 8), np.int16))
    content = path.read_bytes()
    if ".nii" in name:
        is_packed = name.endswith(".gz")
        header = bytearray(gzip.decompress(content) if is_packed else content)
        header[42:48] = np.array([1024] * 3, "<i2").tobytes()  # dim[1..3]
        content = gzip.compress(header) if is_packed else bytes(header)
    else:
        content = re.sub(rb"(DimSize =|sizes:) 8 8 8", rb"\1 1024 1024 1024", content)
    path.write_bytes(content)
    with opened(path, "case7") as file, pytest.raises(ScanError, match=r"case7: .* truncated"):
        read_volume_header(file, path, "case7")
    with pytest.raises(ScanError, match=r"case7: .*truncated: \d+ bytes of voxels, 2147483648"):
        read_ct(path, image_id="case7")


@pytest.mark.parametrize("task", ["bytes_as_ct", "no_array", "another_shape"])
def test_reader_that_does_not_keep_to_its_result_gives_no_ct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(scans, "_CT_TASK", f"tests.imaging.false_tasks:{task}")
    with pytest.raises(ReaderStoppedError, match=r"case7: the reader .*export it again"):
        read_ct(write(tmp_path / "plain.nii", VOXELS), image_id="case7")


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
