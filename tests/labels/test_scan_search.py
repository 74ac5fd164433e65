"""Tests of the search of the programs for scans: as the server lists a studies folder, and in case folders."""

from pathlib import Path

import pytest

from lib.errors import ScanError
from lib.imaging.scans import scan_name
from lib.labels.scan_search import find_scans
from lib.labels.studies_folder import StudiesFolder
from tests.permissions import forbidden


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0")
    return path


def touch_dicom(path: Path) -> Path:
    touch(path).write_bytes(b"\0" * 128 + b"DICM")
    return path.parent


def found_in(folder: Path) -> list[Path]:
    return [scan.path for scan in find_scans(folder).scans]


def test_a_folder_with_dicom_files_is_one_scan(tmp_path: Path) -> None:
    touch_dicom(tmp_path / "1.dcm")
    touch(tmp_path / "a.nii")
    assert found_in(tmp_path) == [tmp_path]


def test_a_scan_file_is_one_scan(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.nii.gz")
    assert found_in(path) == [path]


def test_a_case_folder_gives_its_ct_and_not_its_label(tmp_path: Path) -> None:
    path = touch(tmp_path / "ct.nii.gz")
    touch(tmp_path / "label.nii.gz")
    assert found_in(tmp_path) == [path]


def test_files_dicom_folders_and_case_folders_are_found_in_order(tmp_path: Path) -> None:
    expected = [
        touch(tmp_path / "a.nii.gz"),
        touch(tmp_path / "b.mha"),
        touch_dicom(tmp_path / "c" / "IM1"),
        touch_dicom(tmp_path / "d" / "series" / "1.dcm").parent,
        touch(tmp_path / "pt_1" / "ct.nii.gz"),
        touch(tmp_path / "pt_2" / "img.nrrd"),
    ]
    for name in (
        "notes.txt",
        ".writing-x.nii",
        "pt_1/label.nii.gz",
        "pt_3/label.nii.gz",
        "e/DICOMDIR",
    ):
        touch(tmp_path / name)
    touch_dicom(tmp_path / "e" / "DICOMDIR")
    assert found_in(tmp_path) == expected


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt")
    with pytest.raises(ScanError, match=r"no scans; expected DICOM files, \.nii\.gz"):
        find_scans(tmp_path)
    with pytest.raises(ScanError, match=r"cannot be read as a folder of scans: No such file"):
        find_scans(tmp_path / "missing")
    with pytest.raises(ScanError, match=r"cannot be read as a folder of scans: Not a directory"):
        find_scans(tmp_path / "notes.txt")


def test_two_scans_of_one_name_are_both_found(tmp_path: Path) -> None:
    touch(tmp_path / "s.nii")
    touch(tmp_path / "s.nii.gz")
    assert found_in(tmp_path) == [tmp_path / "s.nii", tmp_path / "s.nii.gz"]
    assert find_scans(tmp_path).by_name() == {
        "s.nii": tmp_path / "s.nii",
        "s.nii.gz": tmp_path / "s.nii.gz",
    }


def test_nested_exports_are_found_as_on_the_server(tmp_path: Path) -> None:
    expected = [
        touch_dicom(tmp_path / "CD" / "DICOM" / "PA1" / "ST1" / "SE1" / "IM1"),
        touch_dicom(tmp_path / "CD" / "DICOM" / "PA2" / "ST1" / "SE1" / "IM1"),
        touch(tmp_path / "a.nii.gz"),
        touch(tmp_path / "batch" / "2026" / "pt_1" / "ct.nii.gz"),
        touch(tmp_path / "batch" / "pt_1" / "ct.nii.gz"),
    ]
    touch_dicom(tmp_path / "labels" / "final" / "1.dcm")
    found = find_scans(tmp_path)
    assert [scan.path for scan in found.scans] == expected
    listing = StudiesFolder(tmp_path, reserved={"labels": ""}, harmful=dict).listing()
    on_server = {image_id: tmp_path / e.path for image_id, e in listing.images.items()}
    assert {s.image_id: s.path for s in found.scans[:3]} == on_server
    # Two series are called SE1, two cases pt_1: each gets a name of its own.
    names = found.by_name()
    assert sorted(names.values()) == expected
    assert names["a"] == tmp_path / "a.nii.gz"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz")
    (tmp_path / "b.nrrd").touch()
    (tmp_path / "empty").mkdir()
    touch_dicom(tmp_path / "closed" / "IM1")
    touch(tmp_path / "pt_1" / "label.nii.gz")
    with forbidden(tmp_path / "closed"):
        found = find_scans(tmp_path)
        (tmp_path / "a.nii.gz").unlink()
        with pytest.raises(ScanError, match=r"no scans; .*; b\.nrrd is empty"):
            find_scans(tmp_path)
    assert [scan.path.name for scan in found.scans] == ["a.nii.gz"]
    assert found.refused == {
        "b": "b.nrrd is empty (0 bytes); copy it again",
        "closed": "closed cannot be read (Permission denied)",
        "empty": "empty is an empty folder; copy the scan again, or remove it",
    }


def test_real_cases_are_found(shared_data: Path) -> None:
    names = {scan_name(path) for path in found_in(shared_data / "openkbp")}
    assert len(names) > 100
    assert "pt_1" in names
