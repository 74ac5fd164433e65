import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from lib.dicom.ct_writer import write_ct_series
from lib.errors import GeometryError, LabelError, ScanError, StorageError, StorageFullError
from lib.imaging.formats import SCAN_SUFFIXES
from lib.imaging.geometry import Grid, from_sitk, to_sitk
from lib.imaging.scans import read_ct, read_label, scan_name, write_ct, write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from tests.permissions import forbidden
from tests.phantoms import (
    MARK_RAS_MM,
    ORIENTATIONS,
    make_ct,
    make_grid,
    make_label,
    make_oblique_ct,
    mark_ras_mm,
    rotation,
    stored_as,
)

Array = np.ndarray[Any, np.dtype[Any]]


def save(path: Path, array: Array, grid: Grid | None = None) -> Path:
    """Write `array` with SimpleITK, so that `lib.imaging.scans` is not only tested against its own writer."""
    sitk.WriteImage(to_sitk(array, grid or make_grid()), str(path), useCompression=True)
    return path


def save_nifti(
    path: Path,
    *,
    array: Array | None = None,
    sform: tuple[Array | None, int] = (None, 1),
    qform: tuple[Array | None, int] = (None, 1),
    units: str = "mm",
) -> Path:
    """Write the phantom as NIfTI with these transforms (the phantom's own for None) and codes."""
    image: Any = nib.Nifti1Image(make_ct().array_hu if array is None else array, None)  # type: ignore[no-untyped-call]
    own = make_grid().affine_ras
    image.set_sform(own if sform[0] is None else sform[0], code=sform[1])
    image.set_qform(own if qform[0] is None else qform[0], code=qform[1])
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def shifted(offset_mm: float) -> Array:
    affine = make_grid().affine_ras
    affine[0, 3] += offset_mm
    return affine


# --- good scans


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
@pytest.mark.parametrize("make", [make_ct, make_oblique_ct])
def test_every_format_gives_the_same_voxels_at_the_same_place(
    tmp_path: Path, suffix: str, make: Callable[[], CtVolume]
) -> None:
    ct = make()
    read = read_ct(save(tmp_path / f"case7{suffix}", ct.array_hu, ct.grid))
    assert read.image_id == "case7"
    assert read.array_hu.dtype == np.int16
    assert read.grid.is_same_as(ct.grid)
    np.testing.assert_array_equal(read.array_hu, ct.array_hu)
    np.testing.assert_allclose(mark_ras_mm(read), mark_ras_mm(ct), atol=1e-4)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS[::5])
def test_storage_order_is_kept_and_the_mark_stays_in_place(
    tmp_path: Path, suffix: str, order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    ct = stored_as(make_ct(), order, flips)
    read = read_ct(save(tmp_path / f"case7{suffix}", ct.array_hu, ct.grid))
    assert read.grid.is_same_as(ct.grid)
    np.testing.assert_array_equal(read.array_hu, ct.array_hu)
    np.testing.assert_allclose(mark_ras_mm(read), MARK_RAS_MM, atol=1e-4)


@pytest.mark.parametrize(
    ("sform_code", "qform_code"), [(s, q) for s in range(5) for q in range(5) if s or q]
)
def test_sform_and_qform_are_chosen_as_itk_does(
    tmp_path: Path, sform_code: int, qform_code: int
) -> None:
    path = save_nifti(
        tmp_path / "a.nii", sform=(shifted(0.9), sform_code), qform=(None, qform_code)
    )
    assert read_ct(path).grid.is_same_as(Grid.of_sitk(sitk.ReadImage(str(path))))


def test_a_qform_with_rounding_errors_is_accepted(tmp_path: Path) -> None:
    directions = rotation(about_z_deg=179.99)
    ct = make_ct(make_grid((512, 512, 12), directions))
    save(tmp_path / "a.nii", ct.array_hu, ct.grid)
    assert read_ct(tmp_path / "a.nii").grid.is_same_as(ct.grid)


def test_a_sibling_of_the_same_stem_is_not_read_instead(tmp_path: Path) -> None:
    ct = make_ct()
    save(tmp_path / "s.nii", np.full_like(ct.array_hu, 3), ct.grid)
    save(tmp_path / "s.nii.gz", ct.array_hu, ct.grid)
    np.testing.assert_array_equal(read_ct(tmp_path / "s.nii.gz").array_hu, ct.array_hu)


def test_values_below_air_become_air(tmp_path: Path) -> None:
    ct = make_ct()
    array = ct.array_hu.copy()
    array[0, 0, :3] = (-3024, -8192, -1025)
    read = read_ct(save(tmp_path / "a.nrrd", array))
    np.testing.assert_array_equal(read.array_hu[0, 0, :4], [-1024, -1024, -1024, -1000])
    np.testing.assert_array_equal(read.array_hu[1:], ct.array_hu[1:])


def test_whole_numbers_stored_as_float_become_int16_and_fractions_stay(tmp_path: Path) -> None:
    array = make_ct().array_hu.astype(np.float32)
    assert read_ct(save(tmp_path / "a.mha", array)).array_hu.dtype == np.int16
    array[3, 3, 3] = 40.5
    read = read_ct(save(tmp_path / "b.mha", array))
    assert read.array_hu.dtype == np.float32
    assert read.array_hu[3, 3, 3] == 40.5


def test_nifti_scaling_is_applied(tmp_path: Path) -> None:
    ct = make_ct()
    image: Any = nib.Nifti1Image((ct.array_hu + 1024).astype(np.uint16), None)  # type: ignore[no-untyped-call]
    image.set_sform(ct.grid.affine_ras, code=1)
    image.header.set_slope_inter(1, -1024)
    path = tmp_path / "a.nii.gz"
    image.to_filename(path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(gzip.compress(bytes(raw)))
    np.testing.assert_array_equal(read_ct(path).array_hu, ct.array_hu)


def test_a_trailing_dimension_of_one_is_dropped(tmp_path: Path) -> None:
    ct = make_ct()
    nifti = save_nifti(tmp_path / "a.nii.gz", array=ct.array_hu[..., None])
    np.testing.assert_array_equal(read_ct(nifti).array_hu, ct.array_hu)
    joined = sitk.JoinSeries([to_sitk(ct.array_hu, ct.grid)])
    sitk.WriteImage(joined, str(tmp_path / "a.mha"))
    read = read_ct(tmp_path / "a.mha")
    assert read.grid.is_same_as(ct.grid)
    np.testing.assert_array_equal(read.array_hu, ct.array_hu)


def test_a_folder_is_read_as_dicom(tmp_path: Path) -> None:
    ct = make_oblique_ct()
    write_ct_series(ct, tmp_path / "case7", patient_id="anonymous")
    read = read_ct(tmp_path / "case7")
    assert read.image_id == "case7"
    assert read.grid.is_same_as(ct.grid)
    np.testing.assert_array_equal(read.array_hu, ct.array_hu)


# --- scans that cannot be read


def test_a_missing_file_or_one_that_is_not_a_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"a: a\.nii cannot be read \(No such file"):
        read_ct(tmp_path / "a.nii")
    for name in ("a.nhdr", "a.mhd", "a.dcm", "a.png"):
        with pytest.raises(
            ScanError, match=rf"{name} is not one of \.nii\.gz.*folder of a DICOM series"
        ):
            read_ct(tmp_path / name, image_id="case7")


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"case7{suffix}"
    path.touch()
    with pytest.raises(ScanError, match=r"case7: case7\.\S+ is empty \(0 bytes\)"):
        read_ct(path)


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
def test_a_web_page_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"case7{suffix}"
    path.write_text("\n<!DOCTYPE html><html>Please log in</html>")
    with pytest.raises(ScanError, match=r"holds a web page"):
        read_ct(path)


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
def test_garbage_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"case7{suffix}"
    path.write_bytes(bytes(range(1, 256)) * 40)
    with pytest.raises(ScanError, match=r"case7: "):
        read_ct(path)


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, make_grid().shape_vox, dtype=np.int16)
    path = save(tmp_path / f"case7{suffix}", noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ScanError, match=r"case7: .*(truncated|not contain its data)"):
        read_ct(path)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_a_truncated_uncompressed_file_is_refused(tmp_path: Path, suffix: str) -> None:
    ct = make_ct()
    path = tmp_path / f"case7{suffix}"
    sitk.WriteImage(to_sitk(ct.array_hu, ct.grid), str(path), useCompression=False)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ScanError, match=r"case7: .*truncated"):
        read_ct(path)


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "case7.nii")
    raw = bytearray(path.read_bytes())
    raw[123] = 56  # xyzt_units: no such unit
    path.write_bytes(bytes(raw))
    with pytest.raises(
        ScanError, match=r"case7: case7\.nii is not a readable \.nii file, or is damaged"
    ):
        read_ct(path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Spm99AnalyzeImage(make_ct().array_hu, None), tmp_path / "a.img")  # type: ignore[no-untyped-call]
    (tmp_path / "a.hdr").rename(tmp_path / "case7.nii")
    with pytest.raises(ScanError, match=r"case7: case7\.nii is not "):
        read_ct(tmp_path / "case7.nii")


def test_damaged_compressed_data_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, make_grid().shape_vox, dtype=np.int16)
    path = save(tmp_path / "case7.nii.gz", noise)
    raw = bytearray(path.read_bytes())
    raw[2000:2100] = b"\xff" * 100
    path.write_bytes(bytes(raw))
    with pytest.raises(ScanError, match=r"case7: "):
        read_ct(path)


# --- scans without a usable orientation


def test_nifti_without_orientation_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "case7.nii", sform=(None, 0), qform=(None, 0))
    with pytest.raises(GeometryError, match=r"case7: .*no orientation.*convert the CT from DICOM"):
        read_ct(path)


def test_nifti_whose_transforms_disagree_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "case7.nii", sform=(shifted(5), 1))
    with pytest.raises(GeometryError, match=r"sform and qform place a corner 5\.0 mm apart"):
        read_ct(path)


def test_nifti_mirrored_in_one_transform_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "case7.nii", sform=(np.diag([-1, 1, 1, 1]) @ shifted(0), 1))
    with pytest.raises(GeometryError, match=r"sform and qform place a corner"):
        read_ct(path)


def test_nifti_with_a_sheared_transform_is_refused(tmp_path: Path) -> None:
    sheared = make_grid().affine_ras
    sheared[1, 2] = 0.3
    path = save_nifti(tmp_path / "case7.nii", sform=(sheared, 1), qform=(None, 0))
    with pytest.raises(GeometryError, match=r"case7: .*not at right angles"):
        read_ct(path)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_nifti_with_an_impossible_transform_is_refused(tmp_path: Path, value: float) -> None:
    path = save_nifti(tmp_path / "case7.nii", qform=(None, 0))
    raw = bytearray(path.read_bytes())
    raw[280:328] = np.full(12, value, "<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(bytes(raw))
    with pytest.raises(GeometryError, match=r"three positive numbers expected"):
        read_ct(path)


def test_nifti_in_metres_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=r"lengths are in meter; mm expected"):
        read_ct(save_nifti(tmp_path / "case7.nii", units="meter"))


def edit_header(path: Path, old: bytes, new: bytes) -> Path:
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))
    return path


@pytest.mark.parametrize("space", [b"space: scanner-xyz", b"space: 3D-right-handed", b"foo:=bar"])
def test_nrrd_without_an_anatomical_space_is_refused(tmp_path: Path, space: bytes) -> None:
    path = save(tmp_path / "case7.nrrd", make_ct().array_hu)
    edit_header(path, b"space: left-posterior-superior", space)
    with pytest.raises(GeometryError, match=r"case7: the NRRD file has no orientation"):
        read_ct(path)


def test_nrrd_in_ras_gives_the_same_position(tmp_path: Path) -> None:
    ct = make_ct()
    path = save(tmp_path / "case7.nrrd", ct.array_hu)
    old = [b"space: left-posterior-superior", b"(1.5,0,0) (0,2,0)", b"(-10.25,-35.5,120.75)"]
    new = [b"space: right-anterior-superior", b"(-1.5,0,0) (0,-2,0)", b"(10.25,35.5,120.75)"]
    for before, after in zip(old, new, strict=True):
        edit_header(path, before, after)
    assert read_ct(path).grid.is_same_as(ct.grid)


def test_nrrd_in_micrometres_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "case7.nrrd", make_ct().array_hu)
    edit_header(path, b"space origin", b'space units: "um" "um" "um"\nspace origin')
    with pytest.raises(GeometryError, match=r'lengths are in "um".*mm expected'):
        read_ct(path)


@pytest.mark.parametrize("key", [b"TransformMatrix", b"ElementSpacing"])
def test_metaimage_without_orientation_is_refused(tmp_path: Path, key: bytes) -> None:
    path = edit_header(save(tmp_path / "case7.mha", make_ct().array_hu), key, b"SomethingElse")
    with pytest.raises(GeometryError, match=r"case7: the MetaImage file has no orientation"):
        read_ct(path)


@pytest.mark.parametrize("field", [b"data file: /etc/passwd\n", b"DataFile:/etc/passwd\n"])
def test_nrrd_that_refers_to_another_file_is_refused(tmp_path: Path, field: bytes) -> None:
    path = save(tmp_path / "case7.nrrd", make_ct().array_hu)
    edit_header(path, b"space origin", field + b"space origin")
    with pytest.raises(ScanError, match=r"does not contain its data"):
        read_ct(path)


def test_metaimage_that_refers_to_another_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "case7.mha", make_ct().array_hu)
    edit_header(path, b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd")
    edit_header(path, b"NDims", b"Comment = ElementDataFile = LOCAL\nNDims")
    with pytest.raises(ScanError, match=r"does not contain its data"):
        read_ct(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_sheared_grid_is_refused_in_every_format(tmp_path: Path, suffix: str) -> None:
    affine = make_grid().affine_ras
    affine[1, 2] = 0.3
    grid = Grid.from_affine(make_grid().shape_vox, affine)
    path = save(tmp_path / f"case7{suffix}", make_ct().array_hu, grid)
    with pytest.raises(GeometryError, match=r"case7: .*not at right angles"):
        read_ct(path)


# --- volumes that are not a CT


def test_more_than_three_dimensions_are_refused(tmp_path: Path) -> None:
    ct = make_ct()
    two = np.stack([ct.array_hu, ct.array_hu], axis=-1)
    with pytest.raises(ScanError, match=r"4 dimensions, 20 x 16 x 12 x 2 voxels; one 3D volume"):
        read_ct(save_nifti(tmp_path / "a.nii", array=two))
    image = to_sitk(ct.array_hu, ct.grid)
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "a.nrrd"))
    with pytest.raises(
        ScanError, match=r"the NRRD file has no orientation"
    ):  # ITK leaves it out in 4D
        read_ct(tmp_path / "a.nrrd")
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "a.mha"))
    with pytest.raises(ScanError, match=r"4 dimensions"):
        read_ct(tmp_path / "a.mha")


def test_a_2d_image_is_refused(tmp_path: Path) -> None:
    array = make_ct().array_hu
    with pytest.raises(ScanError, match=r"2 dimensions, 20 x 16 voxels"):
        read_ct(save_nifti(tmp_path / "a.nii", array=array[:, :, 3]))
    sitk.WriteImage(sitk.Image(20, 16, sitk.sitkInt16), str(tmp_path / "a.mha"))
    with pytest.raises(ScanError, match=r"2 dimensions, 20 x 16 voxels"):
        read_ct(tmp_path / "a.mha")


@pytest.mark.parametrize("shape", [(20, 16, 1), (20, 16, 7), (7, 16, 12), (20, 7, 12)])
def test_a_small_volume_is_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    array = make_ct().array_hu[: shape[0], : shape[1], : shape[2]]
    with pytest.raises(ScanError, match=r"case7: .* is a 2D image or localizer"):
        read_ct(save(tmp_path / "case7.mha", array, make_grid(shape)))


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
def test_colour_is_refused(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(np.zeros((12, 16, 20, 3), np.uint8), isVector=True)
    path = tmp_path / f"case7{suffix}"
    sitk.WriteImage(image, str(path))
    with pytest.raises(ScanError, match=r"case7: .*(one number each|5 dimensions)"):
        read_ct(path)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "case7.nii", array=np.ones((20, 16, 12), np.complex64))
    with pytest.raises(ScanError, match=r"case7: .*one number each expected"):
        read_ct(path)


def test_a_header_that_claims_too_many_voxels_is_refused_before_they_are_read(
    tmp_path: Path,
) -> None:
    path = save_nifti(tmp_path / "case7.nii")
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.array([30000] * 3, "<i2").tobytes()  # dim[1..3]
    path.write_bytes(bytes(raw))
    with pytest.raises(ScanError, match=r"30000 x 30000 x 30000 voxels"):
        read_ct(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    array = make_ct().array_hu.astype(np.float32)
    array[3, 4, 5] = value
    with pytest.raises(ScanError, match=r"case7: some voxels are NaN or infinite"):
        read_ct(save(tmp_path / "case7.nrrd", array))


def test_a_constant_image_is_refused(tmp_path: Path) -> None:
    array = np.full(make_grid().shape_vox, -1000, np.int16)
    with pytest.raises(ScanError, match=r"case7: every voxel is -1000; the image is empty"):
        read_ct(save(tmp_path / "case7.nrrd", array))


def test_values_that_are_not_hu_are_refused(tmp_path: Path) -> None:
    stored = make_ct().array_hu + 1024
    with pytest.raises(ScanError, match=r"from 24 to 2524 .*not a CT in HU; the rescale slope and"):
        read_ct(save(tmp_path / "case7.nrrd", stored))
    stored[0, 0, 0] = -2000  # padding is not air
    with pytest.raises(ScanError, match=r"from -2000 to 2524 .*not a CT in HU"):
        read_ct(save(tmp_path / "case7.nrrd", stored))


# --- labels


def label_volume(grid: Grid | None = None) -> LabelVolume:
    return LabelVolume(make_label(grid), grid or make_grid(), {"Bone_Mandible": 1, "Parotid_R": 2})


@pytest.mark.parametrize("suffix", SCAN_SUFFIXES)
@pytest.mark.parametrize("make", [make_ct, make_oblique_ct])
def test_a_written_label_is_read_back_by_itk_and_by_us(
    tmp_path: Path, suffix: str, make: Callable[[], CtVolume]
) -> None:
    grid = make().grid
    path = tmp_path / f"label{suffix}"
    write_label(path, label_volume(grid))
    image = sitk.ReadImage(str(path))
    assert Grid.of_sitk(image).is_same_as(grid)
    np.testing.assert_array_equal(from_sitk(image), make_label(grid))
    array, read_grid = read_label(path, image_id="case7", image_grid=grid)
    assert array.dtype == np.uint8
    assert read_grid.is_same_as(grid)
    np.testing.assert_array_equal(array, make_label(grid))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_a_label_is_written_in_the_requested_type(
    tmp_path: Path, dtype: type[np.integer[Any]]
) -> None:
    write_label(tmp_path / "a.nrrd", label_volume(), dtype=dtype)
    write_label(tmp_path / "a.nii.gz", label_volume(), dtype=dtype)
    for name in ("a.nrrd", "a.nii.gz"):
        assert from_sitk(sitk.ReadImage(str(tmp_path / name))).dtype == dtype


def test_a_label_that_does_not_fit_its_type_is_not_written(tmp_path: Path) -> None:
    label = label_volume()
    label.array[0, 0, 0] = 200
    with pytest.raises(LabelError, match=r"values up to 200 do not fit int8"):
        write_label(tmp_path / "a.nrrd", label, dtype=np.int8)


def test_a_label_is_not_written_under_an_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"a\.txt: cannot be written; expected one of \.nii\.gz"):
        write_label(tmp_path / "a.txt", label_volume())


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
def test_the_old_label_remains_after_a_failed_write(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    write_label(tmp_path / name, label_volume())
    before = (tmp_path / name).read_bytes()
    monkeypatch.setattr(nib, "save", fill_disk)
    monkeypatch.setattr(sitk, "WriteImage", fill_disk)
    with pytest.raises(StorageFullError, match=r"the disk is full, .*everything that was there is"):
        write_label(tmp_path / name, label_volume())
    assert (tmp_path / name).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_is_a_trouble_of_storage(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    with (
        forbidden(folder, mode=0o500),
        pytest.raises(StorageError, match=r"no permission to write"),
    ):
        write_label(folder / "a.nii.gz", label_volume())


def test_whole_floats_and_empty_labels_are_accepted(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mha", make_label().astype(np.float64))
    array, _ = read_label(path, image_id="case7", image_grid=None)
    np.testing.assert_array_equal(array, make_label())
    path = save(tmp_path / "b.mha", np.zeros_like(make_label()))
    assert not read_label(path, image_id="case7", image_grid=make_grid())[0].any()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "NaN or fractions"),
        (0.5, "NaN or fractions"),
        (np.inf, "run from 0 to inf; 0 to 255 expected"),
        (-1.0, "run from -1 to 7; 0 to 255 expected"),
        (256.0, "run from 0 to 256; 0 to 255 expected"),
    ],
)
def test_a_label_of_impossible_values_is_refused(
    tmp_path: Path, value: float, message: str
) -> None:
    array = make_label().astype(np.float32)
    array[0, 0, 0] = value
    with pytest.raises(LabelError, match=f"case7: .*{message}"):
        read_label(save(tmp_path / "a.nrrd", array), image_id="case7", image_grid=None)


def test_a_ct_is_refused_as_a_label(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nrrd", make_ct().array_hu)
    with pytest.raises(LabelError, match=r"run from -1000 to 1500.*is it an image"):
        read_label(path, image_id="case7", image_grid=None)


def test_a_label_of_two_volumes_or_none_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", array=np.stack([make_label()] * 2, axis=-1))
    with pytest.raises(LabelError, match=r"case7: 4 dimensions"):
        read_label(path, image_id="case7", image_grid=None)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(LabelError, match=r"case7: .*truncated"):
        read_label(path, image_id="case7", image_grid=None)


def test_a_label_on_another_grid_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nrrd", make_label())
    other = Grid.from_affine(make_grid().shape_vox, shifted(1.5))
    with pytest.raises(GeometryError, match=r"case7: the label lies on"):
        read_label(path, image_id="case7", image_grid=other)


def test_a_label_without_orientation_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", array=make_label(), sform=(None, 0), qform=(None, 0))
    with pytest.raises(GeometryError, match=r"no orientation"):
        read_label(path, image_id="case7", image_grid=make_grid())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/s.1.nii.gz", "s.1"),
        ("a/S.NRRD", "S"),
        ("pt_7/ct.nii.gz", "pt_7"),
        ("0522c0001/img.nrrd", "0522c0001"),
        ("pt_7/image.mha", "pt_7"),
        ("a/ct_1.nii", "ct_1"),
        ("a/series.1", "series.1"),
    ],
)
def test_a_scan_is_named_by_its_file_or_its_folder(path: str, name: str) -> None:
    assert scan_name(Path(path)) == name


def test_real_scans_are_read(shared_data: Path) -> None:
    path = shared_data / "openkbp" / "pt_1" / "ct.nii.gz"
    ct = read_ct(path)
    image = sitk.ReadImage(str(path))
    assert ct.grid.is_same_as(Grid.of_sitk(image))
    np.testing.assert_array_equal(ct.array_hu, np.maximum(from_sitk(image), -1024))
    label, _ = read_label(path.with_name("label.nii.gz"), image_id="pt_1", image_grid=ct.grid)
    assert label.max() <= 7


@pytest.mark.parametrize(
    ("spacing_mm", "lengths"),
    [
        ((1e5, 1e5, 1e5), "2e+06 x 1.6e+06 x 1.2e+06"),
        ((1e-3, 1e-3, 3e-3), "0.02 x 0.016 x 0.036"),
        ((60.0, 1.0, 90.0), "1200 x 16 x 1080"),
        ((1.0, 1.0, 300.0), "20 x 16 x 3600"),
        ((1.0, 0.01, 3.0), "20 x 0.16 x 36"),
    ],
)
def test_volume_that_no_scanner_covers_is_refused(
    tmp_path: Path, spacing_mm: tuple[float, float, float], lengths: str
) -> None:
    ct = make_ct()
    rows = np.diag(spacing_mm)
    grid = Grid.from_affine(ct.grid.shape_vox, np.vstack([np.c_[rows, [0, 0, 0]], [0, 0, 0, 1]]))
    for suffix in (".nii.gz", ".mha", ".nrrd"):
        write_ct(tmp_path / f"a{suffix}", CtVolume("a", ct.array_hu, grid))
        with pytest.raises(
            GeometryError, match=re.escape(f"a: the volume covers {lengths} mm; 1 x 1 x 10 to")
        ):
            read_ct(tmp_path / f"a{suffix}")
