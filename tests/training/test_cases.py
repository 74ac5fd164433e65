import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lib.errors import DatastoreError, TrainingError
from lib.imaging.geometry import Grid
from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.preprocessing import Pipeline
from lib.organs.label_files import read_organ_label
from lib.training.cases import POINTS_PER_ORGAN, Case, find_labelled_cases, prepare_cases
from lib.training.crops import CropDataset
from tests.permissions import forbidden
from tests.phantoms import make_ct, make_grid, make_label
from tests.segment_files import slicer_fields, write_seg_nrrd
from tests.tiny import TINY


@pytest.fixture
def large(tmp_path: Path) -> Case:
    """A case of 2 million voxels at the recipe's own spacing, half of which are mandible."""
    shape = (82, 82, 328)
    affine = np.diag([*TINY.spacing_mm, 1.0])
    grid = Grid.from_affine(shape, affine)
    label = np.zeros(shape, np.uint8)
    label[:, :, :164] = TINY.labels["Bone_Mandible"]
    hu = np.full(shape, 40, np.int16)
    hu[:4] = -1000
    write_ct(tmp_path / "large.nii.gz", CtVolume("large", hu, grid))
    write_label(tmp_path / "label.nii.gz", LabelVolume(label, grid, TINY.labels))
    return Case("large", tmp_path / "large.nii.gz", tmp_path / "label.nii.gz")


def test_a_case_in_memory_is_small_however_large_it_is_on_disk(large: Case, tmp_path: Path) -> None:
    prepare_cases([large], Pipeline(TINY), tmp_path / "cache")
    tracemalloc.start()
    try:
        case = prepare_cases([large], Pipeline(TINY), tmp_path / "cache")[0]
        in_use, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    on_disk = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.npy"))
    assert on_disk > 6_000_000
    assert in_use < 200_000
    assert isinstance(case.hu, np.memmap)
    assert isinstance(case.label, np.memmap)
    (points,) = case.points.values()
    assert points.base is None, "a view would hold every voxel of the organ in memory"
    assert POINTS_PER_ORGAN <= len(points) < 2 * POINTS_PER_ORGAN


def test_a_crop_reads_its_own_window_and_not_the_case(large: Case, tmp_path: Path) -> None:
    prepared = prepare_cases([large], Pipeline(TINY), tmp_path / "cache")
    crops = CropDataset(prepared, TINY, seed=0, length=20)
    _ = crops[0]
    tracemalloc.start()
    try:
        for number in range(20):
            _ = crops[number]
        in_use, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The case has 2 million voxels; its window for a crop of 32 x 32 x 32 about 60 thousand.
    # The memory in use afterwards is the last crop; the case alone has 6 MB.
    assert in_use < 1_000_000
    assert peak < 4_000_000


def test_more_cases_than_the_limit_of_open_files_are_prepared(
    cases: list[Case], tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 40, before[1]))
    try:
        prepared = prepare_cases(cases[:1] * 40, Pipeline(TINY), tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(prepared) == 40


def test_a_machine_that_allows_too_few_open_files_is_named(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 400))
    with pytest.raises(TrainingError, match=r"1 cases need 514 open files, .* allows 400"):
        prepare_cases(cases[:1], Pipeline(TINY), tmp_path / "cache")


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


@pytest.mark.parametrize("name", ["label.nii.gz", "LABELS.NRRD", "seg.nii.gz", "Segmentation.NII"])
def test_a_case_folder_s_label_has_any_of_the_common_names(name: str, tmp_path: Path) -> None:
    ct = make_ct()
    (tmp_path / "case").mkdir()
    write_ct(tmp_path / "case" / "CT.NII.GZ", ct)
    write_label(tmp_path / "case" / name, LABEL)
    (case,) = find_labelled_cases(tmp_path)
    assert (case.image_id, case.label.name) == ("case", name)


def test_of_several_labels_the_order_of_names_and_suffixes_decides(tmp_path: Path) -> None:
    ct = make_ct()
    (tmp_path / "case").mkdir()
    write_ct(tmp_path / "case" / "ct.nii.gz", ct)
    for name in ("seg.nii.gz", "label.nrrd", "label.nii"):
        write_label(tmp_path / "case" / name, LABEL)
        (case,) = find_labelled_cases(tmp_path)
    assert case.label.name == "label.nii"


def test_a_label_that_names_its_segments_is_trained_on_by_these_names(tmp_path: Path) -> None:
    write_ct(tmp_path / "a" / "ct.nii.gz", make_ct())
    file = tmp_path / "a" / "label.seg.nrrd"
    fields = slicer_fields([("Parotid_L", 1, 0), ("Brainstem", 2, 0), ("Larynx", 7, 0)])
    write_seg_nrrd(file, [make_label()], make_grid(), fields)
    (case,) = find_labelled_cases(tmp_path)
    assert case.label == file
    label = read_organ_label(file, image_id="a", image_grid=make_grid(), labels=TINY.labels)
    for value, organ in ((1, "Parotid_L"), (2, "Brainstem"), (7, "Larynx")):
        np.testing.assert_array_equal(label == TINY.labels[organ], make_label() == value)
    (prepared,) = prepare_cases([case], Pipeline(TINY), tmp_path / "cache")
    assert set(prepared.points) <= {TINY.labels[o] for o in ("Parotid_L", "Brainstem", "Larynx")}
    assert TINY.labels["Parotid_L"] in prepared.points


def test_a_case_that_the_disk_does_not_give_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        write_ct(tmp_path / name / "ct.nii.gz", make_ct())
        write_label(tmp_path / name / "label.nii.gz", LABEL)
    cases = find_labelled_cases(tmp_path)
    with forbidden(tmp_path / "b" / "label.nii.gz"):
        prepared = prepare_cases(cases, Pipeline(TINY), tmp_path / "cache")
    assert [case.image_id for case in prepared] == ["a"]
    assert "left out of the training: b: Permission denied" in caplog.text
