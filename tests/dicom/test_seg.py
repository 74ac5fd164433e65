"""DICOM SEG written and read back: voxel by voxel, also with independent programs."""

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lib.dicom.object_attributes import ObjectProvenance, derived_uid
from lib.dicom.seg import read_seg, write_seg
from lib.dicom.structures import label_from_structures
from lib.errors import GeometryError, LabelError
from lib.imaging.dicom_series import read_headers
from lib.imaging.geometry import Grid
from lib.imaging.volumes import LabelVolume
from lib.organs.table import ORGANS
from tests.dicom.organ_phantom import LABELS, NAMES, Case, make_case, organs
from tests.dicom.other_readers import by_dcmqi, by_highdicom, errors_of

ABOUT = ObjectProvenance(
    sop_instance_uid=derived_uid("an object"),
    series_instance_uid=derived_uid("its series"),
    author="Ada Lovelace",
    model="OrganNet2.5D",
    model_version="organnet25d-pddca-1",
    description="final 2",
    created=datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone.utc),
)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("seg") / "ct")


@pytest.fixture(scope="module")
def seg(case: Case) -> Path:
    path = case.folder.with_name("organs.dcm")
    assert write_seg(path, case.label, case.headers, ABOUT, image_id="case7") == ()
    return path


def test_a_label_is_restored_voxel_by_voxel(case: Case, seg: Path) -> None:
    read_back = read_seg(seg, case.headers, case.grid, image_id="case7")
    assert (read_back.names, read_back.changes) == (NAMES, ())
    back = label_from_structures(read_back, LABELS, case.grid, "case7")
    np.testing.assert_array_equal(back.array, case.expected)
    assert back.grid == case.grid
    assert back.labels == {name: LABELS[name] for name in NAMES}


def test_dcmqi_and_highdicom_read_the_same_organs(case: Case, seg: Path, tmp_path: Path) -> None:
    for read_back in (
        by_dcmqi(seg, case.grid, tmp_path / "dcmqi"),
        by_highdicom(seg, case.headers),
    ):
        assert tuple(read_back) == NAMES
        for name, mask in read_back.items():
            np.testing.assert_array_equal(mask, case.expected == LABELS[name], err_msg=name)


def test_dciodvfy_finds_no_error(seg: Path) -> None:
    assert errors_of(seg) == []


def test_segments_have_names_codes_sides_colours_and_their_author(case: Case, seg: Path) -> None:
    dataset = pydicom.dcmread(seg)
    assert dataset.SegmentationType == "BINARY"
    assert dataset.NumberOfFrames == len(NAMES) * len(case.headers), "viewers count frames"
    assert dataset.SOPInstanceUID == ABOUT.sop_instance_uid
    assert dataset.SeriesInstanceUID == ABOUT.series_instance_uid
    assert dataset.StudyInstanceUID == case.headers[0].StudyInstanceUID
    assert (dataset.PatientName, dataset.PatientID) == ("organs", "organs")
    assert dataset.ContentCreatorName == "Ada Lovelace"
    local = ABOUT.created.astimezone()
    assert dataset.ContentDate + dataset.ContentTime[:6] == local.strftime("%Y%m%d%H%M%S")
    chiasm, nerve = dataset.SegmentSequence[1], dataset.SegmentSequence[2]
    assert [s.SegmentNumber for s in dataset.SegmentSequence] == [1, 2, 3, 4, 5, 6]
    kind = chiasm.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("244453006", "SCT")
    assert "SegmentedPropertyTypeModifierCodeSequence" not in kind
    left = nerve.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (left.CodeValue, left.CodeMeaning) == ("7771000", "Left")
    assert nerve.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert (nerve.SegmentAlgorithmType, nerve.SegmentAlgorithmName) == (
        "SEMIAUTOMATIC",
        "OrganNet2.5D",
    )
    algorithm = nerve.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == "organnet25d-pddca-1"
    assert (nerve.TrackingID, len({s.TrackingUID for s in dataset.SegmentSequence})) == (
        "OpticNrv_L",
        6,
    )


def test_dcmqi_shows_the_organs_colours(case: Case, seg: Path, tmp_path: Path) -> None:
    by_dcmqi(seg, case.grid, tmp_path / "dcmqi")
    text = "".join((tmp_path / "dcmqi" / "s-meta.json").read_text().split())
    for name in NAMES:
        red, green, blue = ORGANS[name].colour_rgb
        assert f'"recommendedDisplayRGBValue":[{red},{green},{blue}]' in text, name


def test_the_same_label_gives_the_same_file(case: Case, seg: Path, tmp_path: Path) -> None:
    write_seg(tmp_path / "again.dcm", case.label, case.headers, ABOUT)
    first, second = pydicom.dcmread(seg), pydicom.dcmread(tmp_path / "again.dcm")
    assert first.PixelData == second.PixelData
    assert first.SegmentSequence == second.SegmentSequence
    assert first.file_meta.MediaStorageSOPInstanceUID == second.file_meta.MediaStorageSOPInstanceUID


@pytest.mark.parametrize(
    ("model", "is_automatic", "expected"),
    [("net", True, "AUTOMATIC"), ("net", False, "SEMIAUTOMATIC"), (None, False, "MANUAL")],
)
def test_the_author_is_recorded(
    case: Case, tmp_path: Path, *, model: str | None, is_automatic: bool, expected: str
) -> None:
    about = ObjectProvenance(model=model, is_automatic=is_automatic)
    write_seg(tmp_path / "who.dcm", case.label, case.headers, about)
    segments = pydicom.dcmread(tmp_path / "who.dcm").SegmentSequence
    assert {s.SegmentAlgorithmType for s in segments} == {expected}
    assert errors_of(tmp_path / "who.dcm") == []


def test_a_name_in_non_latin_letters_is_preserved(case: Case, tmp_path: Path) -> None:
    headers = [pydicom.dcmread(str(h.filename), stop_before_pixels=True) for h in case.headers]
    for header in headers:
        header.SpecificCharacterSet = "ISO_IR 100"
        header.PatientName, header.PatientSex = "Müller^Jörg", "MALE"
    write_seg(tmp_path / "name.dcm", case.label, headers, replace(ABOUT, author="岡=田^\\"))
    dataset = pydicom.dcmread(tmp_path / "name.dcm")
    assert str(dataset.PatientName) == "Müller^Jörg"
    assert (str(dataset.ContentCreatorName), dataset.PatientSex) == ("岡 田", "")


def test_a_study_without_a_valid_date_is_written(case: Case, tmp_path: Path) -> None:
    headers = [pydicom.dcmread(str(h.filename), stop_before_pixels=True) for h in case.headers]
    del headers[0].PatientBirthDate, headers[0].ReferringPhysicianName
    with pytest.warns(UserWarning, match="Invalid value for VR DA"):
        headers[0].StudyDate = "20031332"  # day 32 of month 13
    write_seg(tmp_path / "date.dcm", case.label, headers, ABOUT)
    assert pydicom.dcmread(tmp_path / "date.dcm").StudyDate == ""
    assert errors_of(tmp_path / "date.dcm") == []


def test_an_empty_label_is_refused(case: Case, tmp_path: Path) -> None:
    empty = LabelVolume(np.zeros_like(case.label.array), case.label.grid, LABELS)
    with pytest.raises(LabelError, match="case7: the label contains no organ"):
        write_seg(tmp_path / "empty.dcm", empty, case.headers, ABOUT, image_id="case7")
    assert not list(tmp_path.iterdir())


def test_a_value_without_a_name_is_refused(case: Case, tmp_path: Path) -> None:
    nameless = replace(case.label, labels={"Brainstem": 1})
    with pytest.raises(LabelError, match=r"case7: the label holds the values \[1, 2, 4, 6, 7, 9\]"):
        write_seg(tmp_path / "x.dcm", nameless, case.headers, ABOUT, image_id="case7")


def test_an_organ_without_a_code_is_refused(case: Case, tmp_path: Path) -> None:
    strange = replace(case.label, labels={**LABELS, "Tongue": 1, "Brainstem": 3})
    with pytest.raises(LabelError, match="case7: 'Tongue' has no code"):
        write_seg(tmp_path / "x.dcm", strange, case.headers, ABOUT, image_id="case7")


def test_a_label_of_another_grid_is_refused(case: Case, tmp_path: Path) -> None:
    affine = case.grid.affine_ras
    affine[0, 3] += 0.5
    moved = LabelVolume(organs(), Grid.from_affine(case.grid.shape_vox, affine), LABELS)
    with pytest.raises(GeometryError, match="case7: the label lies on 48 x 40 x 20 voxels"):
        write_seg(tmp_path / "x.dcm", moved, case.headers, ABOUT, image_id="case7")


def test_a_ct_without_a_frame_of_reference_is_refused(case: Case, tmp_path: Path) -> None:
    headers = [pydicom.dcmread(str(h.filename), stop_before_pixels=True) for h in case.headers]
    for header in headers:
        del header.FrameOfReferenceUID
    with pytest.raises(GeometryError, match="case7: the CT has no FrameOfReferenceUID"):
        write_seg(tmp_path / "x.dcm", case.label, headers, ABOUT, image_id="case7")


def test_organs_on_a_real_ct_are_restored_by_every_reader(
    shared_data: Path, tmp_path: Path
) -> None:
    headers, grid = read_headers(shared_data / "hn-ct-dicom", image_id="real")
    array = np.zeros(grid.shape_vox, np.uint8)
    array[180:228, 200:240, 30:50] = organs()
    label = LabelVolume(array, grid, LABELS)
    write_seg(tmp_path / "real.dcm", label, headers, ABOUT, image_id="real")
    assert errors_of(tmp_path / "real.dcm") == []
    own_masks = read_seg(tmp_path / "real.dcm", headers, grid, image_id="real").masks
    dcmqi_masks = by_dcmqi(tmp_path / "real.dcm", grid, tmp_path / "dcmqi")
    for name in NAMES:
        assert np.array_equal(own_masks[name], array == LABELS[name]), name
        assert np.array_equal(dcmqi_masks[name], array == LABELS[name]), name
