"""RTSTRUCT written and read back: exact on the CT's voxels, in our reader and both rules of plastimatch."""

import itertools
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from lib.dicom.ct_writer import write_ct_series
from lib.dicom.object_attributes import ObjectProvenance, derived_uid
from lib.dicom.rtstruct import read_rtstruct, write_rtstruct
from lib.dicom.structures import label_from_structures
from lib.errors import GeometryError, LabelError
from lib.imaging.dicom_series import read_headers
from lib.imaging.geometry import Grid
from lib.imaging.quantities import FloatArray
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.organs.table import ORGANS
from tests.dicom.organ_phantom import LABELS, NAMES, Case, dsc, make_case, organs
from tests.dicom.other_readers import by_plastimatch, errors_of
from tests.phantoms import ORIENTATIONS, make_ct, make_grid, stored_as

ABOUT = ObjectProvenance(
    sop_instance_uid=derived_uid("a structure set"),
    series_instance_uid=derived_uid("the series of it"),
    author="Ada Lovelace",
    model="OrganNet2.5D",
    model_version="organnet25d-pddca-1",
    created=datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone.utc),
)
RULES = [(), ("--xor-contours",)]
"""plastimatch joins the contours of a slice, unless the option makes it use the even-odd rule."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("rtstruct") / "ct")


@pytest.fixture(scope="module")
def rtstruct(case: Case) -> Path:
    path = case.folder.with_name("organs.dcm")
    assert write_rtstruct(path, case.label, case.headers, ABOUT, image_id="case7") == ()
    return path


def test_a_label_is_restored_voxel_by_voxel(case: Case, rtstruct: Path) -> None:
    read_back = read_rtstruct(rtstruct, case.headers, case.grid, image_id="case7")
    assert (read_back.names, read_back.changes) == (NAMES, ())
    back = label_from_structures(read_back, LABELS, case.grid, "case7")
    np.testing.assert_array_equal(back.array, case.expected)


@pytest.mark.parametrize("rule", RULES)
def test_plastimatch_draws_the_same_organs(
    case: Case, rtstruct: Path, tmp_path: Path, rule: tuple[str, ...]
) -> None:
    read_back = by_plastimatch(rtstruct, case.folder, case.grid, tmp_path / "masks", *rule)
    assert set(read_back) == set(NAMES)
    for name, mask in read_back.items():
        np.testing.assert_array_equal(mask, case.expected == LABELS[name], err_msg=name)


def test_dciodvfy_finds_no_error(rtstruct: Path) -> None:
    assert errors_of(rtstruct) == []


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS[::5])
def test_the_label_is_restored_for_any_scan_direction(
    tmp_path: Path, order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    upright = make_grid((24, 20, 16))
    contoured = np.zeros(upright.shape_vox, np.uint8)
    contoured[3:12, 4:9, 5:12], contoured[5:7, 6, 6:9], contoured[20, 3, 2] = 6, 0, 7
    ct = stored_as(make_ct(upright), order, flips)
    write_ct_series(ct, tmp_path / "ct", patient_id="x")
    headers, grid = read_headers(tmp_path / "ct", image_id="x")
    label = LabelVolume(contoured, upright, LABELS)
    write_rtstruct(tmp_path / "rt.dcm", label, headers, ABOUT)
    read_back = read_rtstruct(tmp_path / "rt.dcm", headers, grid, image_id="x")
    stored = stored_as(CtVolume("x", contoured, upright), order, flips)
    at = {name: _places(stored.array_hu == LABELS[name], stored.grid) for name in read_back.masks}
    assert {name: _places(mask, grid) for name, mask in read_back.masks.items()} == at
    assert set(at) == {"Parotid_L", "Parotid_R"}


def _places(
    mask: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]", grid: Grid
) -> set[tuple[float, ...]]:
    """Return the RAS coordinates (mm) of the marked voxels."""
    read_back = np.argwhere(mask) @ grid.affine_ras[:3, :3].T + grid.affine_ras[:3, 3]
    return {tuple(p) for p in np.round(read_back, 2).tolist()}


def test_rois_have_names_colours_codes_and_their_author(case: Case, rtstruct: Path) -> None:
    dataset = pydicom.dcmread(rtstruct)
    frame = case.headers[0].FrameOfReferenceUID
    assert (dataset.Modality, dataset.ApprovalStatus) == ("RTSTRUCT", "UNAPPROVED")
    assert dataset.SOPInstanceUID == ABOUT.sop_instance_uid
    assert dataset.StudyInstanceUID == case.headers[0].StudyInstanceUID
    assert dataset.StructureSetLabel == "ORGANS AT RISK"
    assert dataset.OperatorsName == "Ada Lovelace"
    assert dataset.StructureSetDate == ABOUT.created.astimezone().strftime("%Y%m%d")
    rois = dataset.StructureSetROISequence
    assert [r.ROIName for r in rois] == list(NAMES)
    assert {(r.ROIGenerationAlgorithm, r.ReferencedFrameOfReferenceUID) for r in rois} == {
        ("SEMIAUTOMATIC", frame)
    }
    colours = [tuple(c.ROIDisplayColor) for c in dataset.ROIContourSequence]
    assert colours == [ORGANS[name].colour_rgb for name in NAMES]
    observations = dataset.RTROIObservationsSequence
    assert {o.RTROIInterpretedType for o in observations} == {"ORGAN"}
    code = observations[3].RTROIIdentificationCodeSequence[0]
    side = code.SegmentedPropertyTypeModifierCodeSequence[0]
    assert (code.CodeValue, side.CodeMeaning) == ("45289007", "Left")


def test_contours_lie_on_the_slices_that_they_name(case: Case, rtstruct: Path) -> None:
    dataset = pydicom.dcmread(rtstruct)
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == case.headers[0].FrameOfReferenceUID
    assert series.SeriesInstanceUID == case.headers[0].SeriesInstanceUID
    assert [i.ReferencedSOPInstanceUID for i in series.ContourImageSequence] == [
        h.SOPInstanceUID for h in case.headers
    ]
    headers = {h.SOPInstanceUID: h for h in case.headers}
    for contour in _contours(dataset):
        (image,) = contour.ContourImageSequence
        header = headers[image.ReferencedSOPInstanceUID]
        row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        points = _points(contour) - np.array(header.ImagePositionPatient, float)
        assert np.abs(points @ np.cross(row, column)).max() < 1e-3, "distance from the slice in mm"
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        assert contour.NumberOfContourPoints == len(points) >= 4
        # Along the edges of voxels, halfway between centres: 1.5 mm apart along a row, 2 mm along a column.
        for edge in (points @ row / 1.5 + 0.5, points @ column / 2 + 0.5):
            assert np.abs(edge - np.rint(edge)).max() < 1e-3


def test_contours_enclose_the_voxels_area_however_thin_or_hollow(
    case: Case, rtstruct: Path
) -> None:
    dataset = pydicom.dcmread(rtstruct)
    for number, name in enumerate(NAMES):
        area = sum(
            _area_mm2(_points(c)) for c in dataset.ROIContourSequence[number].ContourSequence
        )
        voxels = np.count_nonzero(case.expected == LABELS[name])
        assert area == pytest.approx(voxels * 1.5 * 2.0, rel=1e-3), name
    assert np.count_nonzero(case.expected == LABELS["OpticChiasm"]) == 2


def test_numbers_are_decimal_strings_of_at_most_16_characters(rtstruct: Path) -> None:
    for contour in _contours(pydicom.dcmread(rtstruct)):
        texts = contour.get_item("ContourData").value.decode().strip().split("\\")
        assert max(map(len, texts)) <= 16
        assert len(texts) == 3 * contour.NumberOfContourPoints


def _contours(dataset: Dataset) -> list[Dataset]:
    return list(itertools.chain(*(r.ContourSequence for r in dataset.ROIContourSequence)))


def _points(contour: Dataset) -> FloatArray:
    return np.array(contour.ContourData, float).reshape(-1, 3)


def _area_mm2(points: FloatArray) -> float:
    """Return the area of a planar polygon, by the shoelace formula in space."""
    centred = points - points[0]
    return float(np.linalg.norm(np.cross(centred, np.roll(centred, -1, axis=0)).sum(axis=0)) / 2)


def test_an_empty_label_is_refused(case: Case, tmp_path: Path) -> None:
    empty = LabelVolume(np.zeros_like(case.label.array), case.label.grid, LABELS)
    with pytest.raises(LabelError, match="case7: the label contains no organ"):
        write_rtstruct(tmp_path / "empty.dcm", empty, case.headers, ABOUT, image_id="case7")
    assert not list(tmp_path.iterdir())


def test_a_label_of_another_grid_is_refused(case: Case, tmp_path: Path) -> None:
    small = replace(case.label, array=case.label.array[1:])
    small = replace(small, grid=Grid((19, 48, 40), case.label.grid.rows_ras))
    with pytest.raises(GeometryError, match="case7: the label lies on 19 x 48 x 40 voxels"):
        write_rtstruct(tmp_path / "x.dcm", small, case.headers, ABOUT, image_id="case7")


def test_organs_on_a_real_ct_are_restored_by_every_reader(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "hn-ct-dicom"
    headers, grid = read_headers(folder, image_id="real")
    array = np.zeros(grid.shape_vox, np.uint8)
    array[180:228, 200:240, 30:50] = organs()
    path = tmp_path / "real.dcm"
    write_rtstruct(path, LabelVolume(array, grid, LABELS), headers, ABOUT)
    assert errors_of(path) == []
    contoured = {"ours": read_rtstruct(path, headers, grid, image_id="real").masks} | {
        str(rule): by_plastimatch(path, folder, grid, tmp_path / f"masks{len(rule)}", *rule)
        for rule in RULES
    }
    for reader, masks in contoured.items():
        assert set(masks) == set(NAMES), reader
        for name, mask in masks.items():
            value = LABELS[name]
            voxels = np.count_nonzero(array == value)
            assert abs(np.count_nonzero(mask) / voxels - 1) <= 0.02, (reader, name)
            assert dsc(np.where(mask, value, 0).astype(np.uint8), array, value) >= 0.99, (
                reader,
                name,
            )
