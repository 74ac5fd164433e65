from pathlib import Path

import pytest

from lib.errors import DatastoreError
from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.training.cases import find_labelled_cases
from tests.phantoms import make_ct, make_grid, make_label

LABEL = LabelVolume(make_label(), make_grid(), {})


def test_the_servers_layout(tmp_path: Path) -> None:
    write_ct(tmp_path / "b.nii.gz", make_ct())
    write_ct(tmp_path / "a.nrrd", make_ct())
    write_ct(tmp_path / "unlabelled.nii.gz", make_ct())
    write_label(tmp_path / "labels" / "final" / "a.nii.gz", LABEL)
    write_label(tmp_path / "labels" / "final" / "b.nii.gz", LABEL)
    write_label(tmp_path / "labels" / "original" / "unlabelled.nii.gz", LABEL)
    cases = find_labelled_cases(tmp_path)
    assert [case.image_id for case in cases] == ["a", "b"]
    assert cases[0].image == tmp_path / "a.nrrd"
    assert cases[0].label == tmp_path / "labels" / "final" / "a.nii.gz"


def test_one_folder_per_case(tmp_path: Path) -> None:
    for name in ("pt_2", "pt_1"):
        write_ct(tmp_path / name / "ct.nii.gz", make_ct())
    write_label(tmp_path / "pt_1" / "label.nii.gz", LABEL)
    cases = find_labelled_cases(tmp_path)
    assert [(case.image_id, case.label.name) for case in cases] == [("pt_1", "label.nii.gz")]


def test_a_folder_without_labels_says_what_was_expected(tmp_path: Path) -> None:
    write_ct(tmp_path / "a.nii.gz", make_ct())
    with pytest.raises(
        DatastoreError, match=r"no labelled case; expected ID.nii.gz with labels/final"
    ):
        find_labelled_cases(tmp_path)


def test_the_real_cases_are_all_found(shared_data: Path) -> None:
    cases = find_labelled_cases(shared_data / "openkbp")
    assert len(cases) == 120
    assert all(case.label.parent.name == case.image_id for case in cases)


def test_two_labelled_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    write_ct(tmp_path / "a.nii", make_ct())
    write_ct(tmp_path / "a.nii.gz", make_ct())
    write_label(tmp_path / "labels" / "final" / "a.nii.gz", LABEL)
    with pytest.raises(DatastoreError, match="several scans are called a; keep one of each"):
        find_labelled_cases(tmp_path)
