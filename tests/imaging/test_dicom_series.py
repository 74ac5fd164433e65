from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import generate_uid

from lib.dicom.ct_writer import write_ct_series
from lib.errors import GeometryError, ScanError
from lib.imaging.dicom_series import holds_dicom, read_headers, read_series
from lib.imaging.geometry import Grid, from_sitk, to_sitk
from lib.imaging.scans import read_ct
from lib.imaging.volumes import CtVolume
from tests.imaging.series_files import copy_series, edit, move, phantom_series, put
from tests.phantoms import (
    MARK_RAS_MM,
    SHAPE_VOX,
    make_ct,
    make_grid,
    make_oblique_ct,
    mark_ras_mm,
    rotation,
    stored_as,
)

UPRIGHT_FLIPS = [(x, y, z) for x in (False, True) for y in (False, True) for z in (False, True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The upright phantom as a series of 12 files."""
    return phantom_series(tmp_path / "series")


def read(folder: Path) -> CtVolume:
    return CtVolume("case7", *read_series(folder, image_id="case7"))


# --- good series


@pytest.mark.parametrize("make", [make_ct, make_oblique_ct])
def test_a_written_series_is_read_back(tmp_path: Path, make: Callable[[], CtVolume]) -> None:
    ct = make()
    uid = write_ct_series(ct, tmp_path, patient_id="anonymous")
    result = read(tmp_path)
    assert result.image_id == "case7"
    assert result.array_hu.dtype == np.int16
    assert result.grid.is_same_as(ct.grid)
    np.testing.assert_array_equal(result.array_hu, ct.array_hu)
    np.testing.assert_allclose(mark_ras_mm(result), mark_ras_mm(ct), atol=1e-6)
    headers, grid = read_headers(tmp_path, image_id="case7")
    assert {str(h.SeriesInstanceUID) for h in headers} == {uid}
    assert grid.is_same_as(ct.grid)
    assert [Path(str(h.filename)).name for h in headers] == sorted(
        p.name for p in tmp_path.iterdir()
    )


@pytest.mark.parametrize("flips", UPRIGHT_FLIPS)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 0, 1)])
def test_the_mark_is_at_the_same_position_in_any_slice_orientation(
    tmp_path: Path, order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    ct = stored_as(make_ct(), order, flips)
    write_ct_series(ct, tmp_path, patient_id="anonymous")
    result = read(tmp_path)
    np.testing.assert_allclose(mark_ras_mm(result), MARK_RAS_MM, atol=1e-6)
    assert np.linalg.det(result.grid.affine_ras[:3, :3]) > 0
    is_right_handed = np.linalg.det(ct.grid.affine_ras[:3, :3]) > 0
    expected = ct.array_hu if is_right_handed else ct.array_hu[:, :, ::-1]
    np.testing.assert_array_equal(result.array_hu, expected)


@pytest.mark.parametrize("flips", UPRIGHT_FLIPS[:4])
def test_itk_reads_a_written_series_at_the_same_position(
    tmp_path: Path, flips: tuple[bool, bool, bool]
) -> None:
    write_ct_series(
        stored_as(make_oblique_ct(), (0, 1, 2), flips), tmp_path, patient_id="anonymous"
    )
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    result = read(tmp_path)
    assert Grid.of_sitk(image).is_same_as(result.grid)
    np.testing.assert_array_equal(from_sitk(image), result.array_hu)


def test_file_names_and_instance_numbers_do_not_order_slices(folder: Path) -> None:
    edit(folder, lambda i, d: put(InstanceNumber=(i * 5) % 12, PatientPosition="FFP")(i, d))
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{(i * 7) % 12:02d}.dcm")
    result = read(folder)
    assert result.grid.is_same_as(make_grid())
    np.testing.assert_array_equal(result.array_hu, make_ct().array_hu)


def test_a_series_of_odd_width_is_read(tmp_path: Path) -> None:
    ct = make_ct(make_grid((511, 20, 12)))
    write_ct_series(ct, tmp_path, patient_id="anonymous")
    result = read(tmp_path)
    assert result.grid.is_same_as(ct.grid)
    np.testing.assert_array_equal(result.array_hu, ct.array_hu)


def test_slices_may_lie_in_folders_with_other_files_beside_them(folder: Path) -> None:
    (folder / "README.txt").write_text("exported")
    (folder / "index").write_bytes(b"x" * 500)
    (folder / "._ct_0001.dcm").write_bytes(b"\0")
    inner = folder / "1"
    inner.mkdir()
    for path in sorted(folder.glob("ct_*.dcm")):
        path.rename(inner / path.stem)
    (folder / "DICOMDIR").write_bytes((inner / "ct_0001").read_bytes())
    assert read(folder).grid.is_same_as(make_grid())
    assert holds_dicom(inner)
    assert not holds_dicom(folder)


@pytest.mark.parametrize("modality", ["RTSTRUCT", "RTDOSE", "RTPLAN", "SEG", "SR"])
def test_objects_that_are_not_slices_are_ignored(folder: Path, modality: str) -> None:
    dataset = pydicom.dcmread(folder / "ct_0001.dcm")
    put(Modality=modality, SeriesInstanceUID=generate_uid())(0, dataset)
    dataset.save_as(folder / "other.dcm")
    assert read(folder).grid.is_same_as(make_grid())


@pytest.mark.parametrize("is_own_series", [True, False])
def test_a_localizer_is_ignored(folder: Path, *, is_own_series: bool) -> None:
    dataset = pydicom.dcmread(folder / "ct_0001.dcm")
    put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], Rows=8, Columns=40)(0, dataset)
    if is_own_series:
        dataset.SeriesInstanceUID = generate_uid()
    dataset.save_as(folder / "other.dcm")
    result = read(folder)
    assert result.grid.is_same_as(make_grid())
    np.testing.assert_array_equal(result.array_hu, make_ct().array_hu)


def test_each_slice_has_its_own_rescale_slope_and_intercept(folder: Path) -> None:
    def rescale(_: int, dataset: Any) -> None:
        stored = dataset.pixel_array.astype(np.int16)  # HU + 1024
        put(RescaleSlope="2", RescaleIntercept="-2000")(0, dataset)
        dataset.PixelData = ((stored + 976) // 2).astype("<i2").tobytes()  # (HU + 2000) / 2

    edit(folder, rescale, only=4)
    result = read(folder)
    assert result.array_hu.dtype == np.int16
    np.testing.assert_array_equal(result.array_hu, make_ct().array_hu)


def test_a_fractional_slope_gives_float32(folder: Path) -> None:
    edit(folder, put(RescaleSlope="0.5"))
    result = read(folder)
    stored = make_ct().array_hu[:, :, 0].astype(float) + 1024
    np.testing.assert_array_equal(result.array_hu[:, :, 0], stored * 0.5 - 1024)
    edit(folder, put(RescaleIntercept="-1024.25"), only=0)
    assert read(folder).array_hu.dtype == np.float32


def test_small_errors_of_position_are_tolerated(folder: Path) -> None:
    edit(folder, move(lambda i: (0.0, 0.001 * (i % 2), 0.004 * (i % 2))))
    assert read(folder).grid.spacing_mm == pytest.approx((1.5, 2.0, 3.0), abs=1e-3)


def test_the_tilt_attribute_alone_is_ignored(folder: Path) -> None:
    edit(folder, put(GantryDetectorTilt="15"))
    assert read(folder).grid.is_same_as(make_grid())


# --- folders that do not hold exactly one CT


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ScanError, match=r"case7: no DICOM files in the folder"):
        read(tmp_path)
    with pytest.raises(ScanError, match=r"case7: the folder cannot be read"):
        read(tmp_path / "missing")


def test_two_series_are_refused_and_described_without_the_patients_name(folder: Path) -> None:
    copy_series(folder, folder, SeriesInstanceUID=generate_uid(), PatientName="Doe^Jane")
    (folder / "copy_ct_0001.dcm").unlink()
    with pytest.raises(ScanError, match=r"2 series \(CT of 12 slices, CT of 11 slices\)") as error:
        read(folder)
    assert "Doe" not in str(error.value)


def test_ct_and_mr_together_are_refused(folder: Path) -> None:
    copy_series(folder, folder / "mr", SeriesInstanceUID=generate_uid(), Modality="MR")
    with pytest.raises(ScanError, match=r"2 series \((CT|MR) of 12 slices, (CT|MR) of 12 slices\)"):
        read(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Modality": "MR"}, "modality MR; CT expected"),
        ({"Modality": None}, "modality unknown; CT expected"),
        ({"Modality": "RTSTRUCT"}, "holds RTSTRUCT but no CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "holds localizers only"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "ct_0001.dcm is a multi-frame"),
        ({"NumberOfFrames": 12}, "ct_0001.dcm is a multi-frame"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "Secondary Capture Image Storage; CT Image"),
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
            r"3 sample\(s\) per pixel, RGB",
        ),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR; one sample, MONOCHROME2"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1; one sample, MONOCHROME2"),
    ],
)
def test_an_image_that_is_not_ct_is_refused(
    folder: Path, values: dict[str, object], message: str
) -> None:
    edit(folder, put(**values))
    with pytest.raises(ScanError, match=f"case7: .*{message}"):
        read(folder)


@pytest.mark.parametrize(
    "keyword",
    ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
     "RescaleSlope", "RescaleIntercept"],
)  # fmt: skip
def test_a_slice_without_a_required_attribute_is_refused(folder: Path, keyword: str) -> None:
    edit(folder, put(**{keyword: None}), only=3)
    with pytest.raises(ScanError, match=rf"case7: ct_0004\.dcm has no usable {keyword}"):
        read(folder)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("RescaleSlope", "0"), ("PixelSpacing", [1.5]), ("PixelSpacing", [-1.5, 2.0])],
)
def test_a_slice_with_an_impossible_attribute_is_refused(
    folder: Path, keyword: str, value: object
) -> None:
    edit(folder, put(**{keyword: value}))
    with pytest.raises(ScanError, match=rf"case7: ct_0001\.dcm has no usable {keyword}"):
        read(folder)


def test_text_in_place_of_a_number_is_refused(folder: Path) -> None:
    path = folder / "ct_0003.dcm"
    path.write_bytes(path.read_bytes().replace(b"-10.25\\", b"-10,25\\", 1))
    with pytest.raises(ScanError, match=r"ct_0003\.dcm has no usable ImagePositionPatient"):
        read(folder)


def test_a_damaged_slice_is_refused_instead_of_ignored(folder: Path) -> None:
    path = folder / "ct_0012.dcm"
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(ScanError, match=r"ct_0012\.dcm \(0 bytes\) is not a DICOM file"):
        read(folder)
    path.write_bytes(whole[:-100])
    with pytest.raises(ScanError, match=r"ct_0012\.dcm has 540 bytes of pixels, 640 expected"):
        read(folder)
    path.write_bytes(whole[:140])
    with pytest.raises(ScanError, match=r"case7: "):
        read(folder)


# --- series without a regular grid


def test_a_single_slice_is_refused(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    with pytest.raises(GeometryError, match=r"case7: the series has a single slice"):
        read(folder)


def test_a_few_slices_are_refused(folder: Path) -> None:
    for path in sorted(folder.iterdir())[7:]:
        path.unlink()
    with pytest.raises(ScanError, match=r"2D image or localizer; at least 8 slices"):
        read_ct(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "ImageOrientationPatient differs"),
        (
            {"ImageOrientationPatient": [1, 0, 0, 0, 0.9998, 0.02]},
            "ImageOrientationPatient differs",
        ),
        ({"Rows": 15}, r"Rows differs between slices \(16.0 in 11 slices; 15.0 in 1 slices\)"),
        ({"Columns": 21}, "Columns differs"),
        ({"PixelSpacing": [2.0, 1.6]}, "PixelSpacing differs"),
        ({"FrameOfReferenceUID": "1.2.3"}, "FrameOfReferenceUID differs"),
    ],
)
def test_slices_that_differ_are_refused(
    folder: Path, values: dict[str, object], message: str
) -> None:
    edit(folder, put(**values), only=5)
    with pytest.raises(GeometryError, match=f"case7: {message}"):
        read(folder)


@pytest.mark.parametrize(
    "directions", [[1, 0, 0, 0, 0, 0], [1, 0, 0, 0.6, 0.8, 0], [2, 0, 0, 0, 2, 0]]
)
def test_directions_not_at_right_angles_are_refused(folder: Path, directions: list[float]) -> None:
    edit(folder, put(ImageOrientationPatient=directions))
    with pytest.raises(GeometryError, match=r"two unit vectors at right angles expected"):
        read(folder)


@pytest.mark.parametrize(("axis", "name"), [(0, r"rows \(x\)"), (1, r"columns \(y\)")])
def test_a_tilted_gantry_is_refused_with_its_angle(folder: Path, axis: int, name: str) -> None:
    shift_mm = 3 * np.tan(np.radians(15))  # 0.80 mm a slice
    edit(folder, move(lambda i: tuple(i * shift_mm * (a == axis) for a in range(3))))
    with pytest.raises(GeometryError, match=rf"tilted by 15\.0 degrees.*0\.80 mm along its {name}"):
        read(folder)


def test_a_tilt_of_a_fifth_of_a_degree_is_refused(folder: Path) -> None:
    edit(folder, move(lambda i: (0, i * 3 * np.tan(np.radians(0.2)), 0)))
    with pytest.raises(GeometryError, match=r"tilted by 0\.2 degrees"):
        read(folder)


def test_a_tilted_oblique_series_is_refused(tmp_path: Path) -> None:
    write_ct_series(make_oblique_ct(), tmp_path, patient_id="anonymous")
    along_y = rotation(about_x_deg=10, about_z_deg=20)[:, 1]
    edit(tmp_path, move(lambda i: tuple(0.8038 * i * along_y)))
    with pytest.raises(GeometryError, match=r"tilted by 15\.0 degrees.*columns \(y\)"):
        read(tmp_path)


def test_a_slice_shifted_sideways_is_refused(folder: Path) -> None:
    edit(folder, move(lambda i: (2.0 * (i == 6), 0, 0)))
    with pytest.raises(GeometryError, match=r"slice 7 of 12 is shifted sideways by 2\.00 mm"):
        read(folder)


def test_one_uneven_step_is_refused_and_located(folder: Path) -> None:
    edit(folder, move(lambda i: (0, 0, 0.5 * (i >= 4))))
    with pytest.raises(
        GeometryError,
        match=r"uneven slices: 3\.50 mm between slice 4 and 5 of 12, elsewhere 3\.00 mm",
    ):
        read(folder)


def test_slowly_growing_steps_are_refused(tmp_path: Path) -> None:
    write_ct_series(make_ct(make_grid((20, 16, 80))), tmp_path, patient_id="anonymous")
    # Steps of 2.98 mm below the middle and 3.02 mm above it: each within 1 %, but the middle is 0.8 mm off.
    edit(tmp_path, move(lambda i: (0, 0, 0.02 * abs(i - 40))))
    with pytest.raises(GeometryError, match=r"case7: uneven slices"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (
            [4],
            r"1 slice missing after 129\.75 mm along the normal \(slice 4 of 11\), steps are 3\.00 mm",
        ),
        ([4, 5], "2 slices missing after 129.75 mm"),
        ([2, 8], "2 slices missing after 123.75 mm"),
    ],
)
def test_missing_slices_are_refused_and_located(
    folder: Path, removed: list[int], message: str
) -> None:
    # The slices are at z = 120.75, 123.75, ...
    for i in removed:
        (folder / f"ct_{i + 1:04d}.dcm").unlink()
    with pytest.raises(GeometryError, match=f"case7: {message}"):
        read(folder)


@pytest.mark.parametrize("folder_name", ["", "copy"])
def test_a_second_copy_of_an_export_is_read_once(folder: Path, folder_name: str) -> None:
    (folder / folder_name).mkdir(exist_ok=True)
    for path in sorted(folder.glob("ct_*.dcm")):
        (folder / folder_name / f"copy_{path.name}").write_bytes(path.read_bytes())
    np.testing.assert_array_equal(read(folder).array_hu, make_ct().array_hu)
    headers, _ = read_headers(folder, image_id="case7")
    assert len(headers) == 12


@pytest.mark.parametrize("values", [{"WindowCenter": "50"}, {"ImagePositionPatient": [0, 0, 500]}])
def test_two_different_objects_of_one_uid_are_refused(
    folder: Path, values: dict[str, object]
) -> None:
    dataset = pydicom.dcmread(folder / "ct_0003.dcm")
    put(**values)(0, dataset)
    dataset.save_as(folder / "copy.dcm")
    with pytest.raises(
        ScanError, match=r"copy\.dcm and ct_0003\.dcm have the same SOPInstanceUID and different"
    ):
        read(folder)


def test_two_slices_at_one_position_are_refused(folder: Path) -> None:
    dataset = pydicom.dcmread(folder / "ct_0003.dcm")
    put(SOPInstanceUID=generate_uid())(0, dataset)
    dataset.save_as(folder / "copy.dcm")
    with pytest.raises(
        GeometryError, match=r"slices 3 and 4 of 13 lie at the same position, 126\.75"
    ):
        read(folder)


def test_several_time_points_in_one_series_are_refused(folder: Path) -> None:
    copy_series(folder, folder)
    with pytest.raises(GeometryError, match=r"12 such pairs\): duplicates, or several time points"):
        read(folder)


# --- the writer


def test_the_writer_makes_valid_ct_image_storage(folder: Path) -> None:
    datasets = [pydicom.dcmread(p) for p in sorted(folder.iterdir())]
    first = datasets[0]
    assert len(datasets) == SHAPE_VOX[2]
    assert first.SOPClassUID.name == "CT Image Storage"
    assert first.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"
    assert (first.PatientID, first.PatientName) == ("anonymous", "anonymous")
    assert (first.Rows, first.Columns, first.PixelSpacing) == (16, 20, [2.0, 1.5])
    assert [d.InstanceNumber for d in datasets] == list(range(1, 13))
    assert len({d.SOPInstanceUID for d in datasets}) == 12
    assert all(d.SOPInstanceUID == d.file_meta.MediaStorageSOPInstanceUID for d in datasets)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({d[keyword].value for d in datasets}) == 1
    heights = [float(d.ImagePositionPatient[2]) for d in datasets]
    np.testing.assert_allclose(heights, 120.75 + 3.0 * np.arange(12))


def test_the_writer_refuses_a_folder_that_is_in_use(folder: Path) -> None:
    with pytest.raises(ScanError, match=r"is not empty; write the series into an empty folder"):
        write_ct_series(make_ct(), folder, patient_id="anonymous")


def test_the_writer_refuses_values_that_do_not_fit(tmp_path: Path) -> None:
    for value in (40000.0, np.nan):
        array = make_ct().array_hu.astype(np.float32)
        array[0, 0, 0] = value
        with pytest.raises(ScanError, match=r"phantom: values run from .* to 31743 can be stored"):
            write_ct_series(
                CtVolume("phantom", array, make_grid()), tmp_path, patient_id="anonymous"
            )


def test_the_writer_refuses_a_sheared_grid(tmp_path: Path) -> None:
    affine = make_grid().affine_ras
    affine[1, 2] = 0.3
    ct = CtVolume("phantom", make_ct().array_hu, Grid.from_affine(SHAPE_VOX, affine))
    with pytest.raises(GeometryError, match=r"phantom: .*not at right angles"):
        write_ct_series(ct, tmp_path, patient_id="anonymous")


# --- the real series


def test_the_real_series_is_read_as_itk_reads_it_and_as_its_nifti_copy(
    shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "hn-ct-dicom"
    if not source.is_dir():
        pytest.skip(f"no real series at {source}")
    ct = read_ct(source)
    assert ct.image_id == "hn-ct-dicom"
    assert ct.grid.shape_vox == (511, 511, 90)
    assert ct.grid.spacing_mm == pytest.approx((1.0, 1.0, 3.0))
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(source)))
    assert Grid.of_sitk(image).is_same_as(ct.grid)
    np.testing.assert_array_equal(np.maximum(from_sitk(image), -1024), ct.array_hu)
    sitk.WriteImage(to_sitk(ct.array_hu, ct.grid), str(tmp_path / "copy.nii"))
    copy = read_ct(tmp_path / "copy.nii")
    assert copy.grid.is_same_as(ct.grid)
    np.testing.assert_array_equal(copy.array_hu, ct.array_hu)


@pytest.mark.parametrize(("slope", "intercept"), [("1", "0"), ("1", "-2048"), ("2", "-1024")])
@pytest.mark.parametrize("first", [0, 5, 11])
def test_slices_that_lost_their_rescale_are_refused(
    folder: Path, slope: str, intercept: str, first: int
) -> None:
    stored = 1024 if pydicom.dcmread(folder / "ct_0001.dcm").RescaleIntercept == -1024 else 0
    wrong = str(int(intercept) + 1024 - stored)
    for number in range(first, min(first + 3, 12)):
        edit(folder, put(RescaleSlope=slope, RescaleIntercept=wrong), only=number)
    with pytest.raises(ScanError, match=r"case7: ct_\d+\.dcm has RescaleSlope .* fit together"):
        read(folder)


def test_slices_may_have_a_rescale_each(folder: Path) -> None:
    expected = read(folder).array_hu

    def change(i: int, dataset: Any) -> None:
        values = dataset.pixel_array.astype(np.int32) + 37 * i
        dataset.PixelData = values.astype(dataset.pixel_array.dtype).tobytes()
        dataset.RescaleIntercept = str(dataset.RescaleIntercept - 37 * i)

    edit(folder, change)
    assert np.array_equal(read(folder).array_hu, expected)


@pytest.mark.parametrize("value", [0, 24])
def test_an_empty_slice_between_others_is_refused(folder: Path, value: int) -> None:
    def change(_: int, dataset: Any) -> None:
        dataset.PixelData = np.full_like(dataset.pixel_array, value).tobytes()

    edit(folder, change, only=0)
    read(folder)
    edit(folder, change, only=6)
    with pytest.raises(ScanError, match=r"case7: ct_0007\.dcm holds one value only, between"):
        read(folder)
