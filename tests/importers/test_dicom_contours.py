import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.seg import write_seg
from lib.errors import LabelError, ScanError
from lib.imaging.dicom_series import read_headers
from lib.imaging.volumes import LabelVolume
from lib.importers.cases import ContouredScan, OrganNames, SourceCase
from lib.importers.detect import find_cases
from tests.importers.sources import (
    BRAINSTEM,
    OPENKBP,
    PAROTID_L,
    PAROTID_R,
    box_mask,
    put_rtstruct,
    put_series,
)
from tests.phantoms import make_ct


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """An export of one patient: one folder per series, named after the patient."""
    put_series(tmp_path / "DOE_JANE" / "CT")
    put_rtstruct(tmp_path / "DOE_JANE" / "RS" / "doe.dcm", tmp_path / "DOE_JANE" / "CT")
    return tmp_path


def read(case: SourceCase, names: OrganNames = OPENKBP) -> ContouredScan:
    assert case.read is not None
    return case.read(names)


def test_ct_and_contours_are_matched_and_named_by_a_hash(clinic: Path) -> None:
    headers, grid = read_headers(clinic / "DOE_JANE" / "CT", image_id="x")
    (case,) = find_cases(clinic)
    study = hashlib.sha256(str(headers[0].StudyInstanceUID).encode()).hexdigest()
    assert case.case_id == f"case_{study[:8]}"
    assert len(case.inputs) == 12 + 1
    drawing = read(case)
    np.testing.assert_array_equal(drawing.ct.array_hu, make_ct().array_hu)
    assert drawing.ct.grid.is_same_as(grid)
    assert drawing.ct.image_id == case.case_id
    for organ, box in {
        "Brainstem": BRAINSTEM,
        "Parotid_L": PAROTID_L,
        "Parotid_R": PAROTID_R,
    }.items():
        np.testing.assert_array_equal(drawing.masks[organ], box_mask(grid, box))


def test_a_seg_is_read_like_an_rtstruct(tmp_path: Path) -> None:
    put_series(tmp_path / "ct")
    headers, grid = read_headers(tmp_path / "ct", image_id="x")
    array = np.zeros(grid.shape_vox, np.uint8)
    for value, box in enumerate((BRAINSTEM, PAROTID_L, PAROTID_R), start=1):
        array[box] = value
    labels = {"Brainstem": 1, "Parotid_L": 2, "Brain": 3}
    write_seg(tmp_path / "drawn.dcm", LabelVolume(array, grid, labels), headers, ObjectProvenance())
    (case,) = find_cases(tmp_path)
    assert case.source == "dicom"
    drawing = read(case)
    assert set(drawing.masks) == {"Brainstem", "Parotid_L"}
    np.testing.assert_array_equal(drawing.masks["Brainstem"], array == 1)
    np.testing.assert_array_equal(drawing.masks["Parotid_L"], array == 2)
    assert list(drawing.naming.outside_set) == ["Brain"]


def test_patients_in_one_flat_folder_are_separated(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put_series(tmp_path / name)
        put_rtstruct(tmp_path / f"{name}.dcm", tmp_path / name)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(tmp_path.rglob("*.dcm"))):
        path.rename(flat / f"{number}.dcm")
    cases = find_cases(flat)
    assert len({case.case_id for case in cases}) == len(cases) == 2
    assert [len(read(case).masks) for case in cases] == [3, 3]


def test_a_ct_without_contours_is_listed_but_not_importable(tmp_path: Path) -> None:
    put_series(tmp_path / "CT")
    (case,) = find_cases(tmp_path)
    assert case.read is None


def test_an_rtstruct_without_its_ct_is_refused(clinic: Path) -> None:
    put_rtstruct(clinic / "lost.dcm", clinic / "DOE_JANE" / "CT", series="1.2.3")
    cases = find_cases(clinic)
    ids = [case.case_id for case in cases]
    assert len(set(ids)) == 2
    assert {i[:13] for i in ids} == {ids[0][:13]}  # of one study: distinguished by four more digits
    (lost,) = (case for case in cases if case.location.name == "lost.dcm")
    with pytest.raises(ScanError, match="match no CT series"):
        read(lost)


def test_without_a_series_uid_the_ct_is_matched_by_its_frame_of_reference(clinic: Path) -> None:
    ct = clinic / "DOE_JANE" / "CT"
    put_rtstruct(clinic / "DOE_JANE" / "RS" / "doe.dcm", ct, series="")
    (case,) = find_cases(clinic)
    assert read(case).notes == (
        "the RTSTRUCT names no series; it was accepted by its frame of reference",
    )


def test_two_structure_sets_are_refused_unless_one_is_a_copy(clinic: Path) -> None:
    ct = clinic / "DOE_JANE" / "CT"
    first = clinic / "DOE_JANE" / "RS" / "doe.dcm"
    (clinic / "copy.dcm").write_bytes(first.read_bytes())
    (case,) = find_cases(clinic)
    assert len(read(case).masks) == 3
    put_rtstruct(clinic / "second.dcm", ct)
    (case,) = find_cases(clinic)
    with pytest.raises(ScanError, match="2 RTSTRUCT or SEG files were drawn on this CT"):
        read(case)


@pytest.mark.parametrize("name", ["a.dcm", "z.dcm"])
def test_a_changed_structure_set_that_kept_its_uid_is_no_copy(clinic: Path, name: str) -> None:
    first = clinic / "DOE_JANE" / "RS" / "doe.dcm"
    dataset = pydicom.dcmread(first)
    del dataset.ROIContourSequence[0].ContourSequence[0]
    dataset.save_as(first.with_name(name))
    (case,) = find_cases(clinic)
    with pytest.raises(ScanError, match="2 RTSTRUCT or SEG files were drawn on this CT"):
        read(case)


def test_only_organs_of_the_set_are_imported(clinic: Path) -> None:
    far = np.s_[2:5, 2:5, 40:42]  # beyond the scan
    boxes = {"Brainstem": [BRAINSTEM], "Couch": [far], "Chiasm": [far], "Cord+5": [far]}
    put_rtstruct(clinic / "DOE_JANE" / "RS" / "doe.dcm", clinic / "DOE_JANE" / "CT", boxes)
    (case,) = find_cases(clinic)
    drawing = read(case)
    assert set(drawing.masks) == {"Brainstem"}
    assert drawing.naming.outside_set == ["Chiasm"]
    assert drawing.naming.unmapped == ["Couch", "Cord+5"]


def test_a_case_with_damaged_files_beside_it_is_refused(clinic: Path) -> None:
    (clinic / "DOE_JANE" / "CT" / "ct_0099.dcm").write_bytes(b"cut short")
    (case,) = find_cases(clinic)
    with pytest.raises(ScanError, match=r"1 files beside the CT's slices \(9 bytes\)") as refusal:
        read(case)
    assert "DOE" not in str(refusal.value)


def test_a_damaged_file_alone_is_refused(clinic: Path) -> None:
    (clinic / "DOE_JANE" / "RS" / "doe.dcm").write_bytes(b"cut short")
    ct, damaged = sorted(find_cases(clinic), key=lambda case: case.case_id)
    assert ct.read is None
    with pytest.raises(ScanError, match=r"damaged_[0-9a-f]{8}: a DICOM file without a CT"):
        read(damaged)


def test_no_refusal_names_the_patient(clinic: Path) -> None:
    for path in (clinic / "DOE_JANE" / "CT").glob("ct_0005.dcm"):
        path.rename(path.with_name("DOE^JANE_5.dcm"))
        slice_ = pydicom.dcmread(path.with_name("DOE^JANE_5.dcm"))
        slice_.PhotometricInterpretation = "MONOCHROME1"
        slice_.save_as(path.with_name("DOE^JANE_5.dcm"))
    (case,) = find_cases(clinic)
    with pytest.raises(ScanError, match="MONOCHROME1") as refusal:
        read(case)
    assert "DOE" not in str(refusal.value)


def test_two_series_of_one_study_have_different_names(tmp_path: Path) -> None:
    put_series(tmp_path / "1")
    (tmp_path / "2").mkdir()
    uids = {"SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
    for path in (tmp_path / "1").iterdir():
        copy = pydicom.dcmread(path)
        copy.SOPInstanceUID = generate_uid()
        for keyword, uid in uids.items():
            setattr(copy, keyword, uid)
        copy.save_as(tmp_path / "2" / path.name)
    for name in ("1", "2"):
        put_rtstruct(tmp_path / f"{name}.dcm", tmp_path / name)
    ids = [case.case_id for case in find_cases(tmp_path)]
    assert len(set(ids)) == 2
    assert all(len(i) == len("case_01234567_0123") for i in ids)


def test_an_empty_roi_beside_the_drawn_one_of_an_organ_is_left_out(clinic: Path) -> None:
    for twin in ("LEFT PAROTID", "parotid lt"):
        boxes = {twin: [], "Parotid_L": [PAROTID_L]}
        put_rtstruct(clinic / "DOE_JANE" / "RS" / "doe.dcm", clinic / "DOE_JANE" / "CT", boxes)
        (case,) = find_cases(clinic)
        drawing = read(case)
        assert drawing.masks["Parotid_L"].sum() == 48
        assert drawing.notes == (f"ROIs without a closed contour: {twin!r}",)


def test_two_rois_of_one_organ_are_refused(clinic: Path) -> None:
    boxes = {"Cord": [BRAINSTEM], "SpinalCord": [BRAINSTEM]}
    put_rtstruct(clinic / "DOE_JANE" / "RS" / "doe.dcm", clinic / "DOE_JANE" / "CT", boxes)
    (case,) = find_cases(clinic)
    with pytest.raises(LabelError, match="'Cord' and 'SpinalCord' both mean SpinalCord"):
        read(case)
    names = OrganNames(organ_set="openkbp", table={"cord": "ignore"})
    assert set(read(case, names).masks) == {"SpinalCord"}
