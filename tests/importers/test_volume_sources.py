"""PDDCA, OpenKBP and NIfTI pairs."""

import json
from pathlib import Path

import numpy as np
import pytest

from lib.errors import ConfigError, GeometryError, LabelError, ScanError
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import write_ct
from lib.importers.cases import ContouredScan, OrganNames, SourceCase
from lib.importers.detect import duplicate_ids, find_cases
from tests.importers.sources import (
    BRAINSTEM,
    OPENKBP,
    PAROTID_L,
    PAROTID_R,
    PDDCA,
    box_mask,
    label_array,
    put_label,
    put_openkbp,
    put_pddca,
)
from tests.phantoms import make_ct, make_grid
from tests.segment_files import slicer_fields, write_named_nifti, write_seg_nrrd


def only(folder: Path) -> SourceCase:
    (case,) = find_cases(folder)
    return case


def read(case: SourceCase, names: OrganNames = OPENKBP) -> ContouredScan:
    assert case.read is not None
    return case.read(names)


def require_boxes(drawing: ContouredScan, **boxes: tuple[slice, slice, slice]) -> None:
    assert set(drawing.masks) == set(boxes)
    for organ, box in boxes.items():
        np.testing.assert_array_equal(drawing.masks[organ], box_mask(drawing.ct.grid, box))


# --- PDDCA


def test_a_pddca_case_is_read(tmp_path: Path) -> None:
    put_pddca(tmp_path / "0522c0001")
    case = only(tmp_path)
    assert (case.source, case.case_id) == ("pddca", "0522c0001")
    drawing = read(case, PDDCA)
    require_boxes(drawing, Brainstem=BRAINSTEM, Parotid_L=PAROTID_L, Parotid_R=PAROTID_R)
    assert drawing.ct.grid.is_same_as(make_grid())
    assert drawing.naming.organs["BrainStem"] == "Brainstem"


def test_a_folder_of_masks_as_totalsegmentator_writes_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "s0001"
    write_ct(folder / "ct.nii.gz", make_ct())
    mask = box_mask(make_grid(), BRAINSTEM).astype(np.uint8)
    put_label(folder / "segmentations" / "brain_stem.nii.gz", mask)
    put_label(folder / "segmentations" / "heart.nii.gz", mask)
    drawing = read(only(tmp_path))
    require_boxes(drawing, Brainstem=BRAINSTEM)
    assert drawing.naming.unmapped == ["heart"]


def test_empty_masks_are_noted_and_others_refused(tmp_path: Path) -> None:
    folder = tmp_path / "0522c0001"
    put_pddca(folder)
    put_label(folder / "structures" / "Mandible.nrrd", label_array({}))
    drawing = read(only(tmp_path))
    assert "Bone_Mandible" not in drawing.masks
    assert drawing.notes == ["Mandible.nrrd is empty"]
    put_label(folder / "structures" / "Mandible.nrrd", label_array({1: PAROTID_L, 2: PAROTID_R}))
    with pytest.raises(LabelError, match=r"0522c0001: Mandible\.nrrd holds several values"):
        read(only(tmp_path))
    other = make_grid((20, 16, 10))
    put_label(folder / "structures" / "Mandible.nrrd", np.ones((20, 16, 10), np.uint8), other)
    with pytest.raises(GeometryError, match="0522c0001: the label lies on 20 x 16 x 10"):
        read(only(tmp_path))


def test_a_mask_in_two_formats_is_refused(tmp_path: Path) -> None:
    put_pddca(tmp_path / "a")
    put_label(tmp_path / "a" / "structures" / "BrainStem.nii.gz", label_array({1: BRAINSTEM}))
    with pytest.raises(LabelError, match="a: two mask files have one name"):
        read(only(tmp_path))


# --- OpenKBP


def test_an_openkbp_case_is_read(tmp_path: Path) -> None:
    put_openkbp(tmp_path / "train" / "pt_1")
    case = only(tmp_path)
    assert (case.source, case.case_id) == ("openkbp", "pt_1")
    drawing = read(case)
    require_boxes(drawing, Brainstem=BRAINSTEM, Parotid_L=PAROTID_L, Parotid_R=PAROTID_R)


def test_a_ct_without_label_has_no_contours(tmp_path: Path) -> None:
    put_openkbp(tmp_path / "pt_1")
    (tmp_path / "pt_1" / "label.nii.gz").unlink()
    assert only(tmp_path).read is None


# --- pairs


def test_two_folders_are_read_by_names_and_dataset_json(tmp_path: Path) -> None:
    write_ct(tmp_path / "imagesTr" / "a_0000.nii.gz", make_ct())
    put_label(tmp_path / "labelsTr" / "a.nii.gz", label_array({5: BRAINSTEM, 9: PAROTID_L}))
    write_ct(tmp_path / "imagesTr" / "b_0000.nii.gz", make_ct())
    meaning = {"labels": {"background": 0, "brain stem": 5, "tumour": 9}}
    (tmp_path / "dataset.json").write_text(json.dumps(meaning))
    first, second = find_cases(tmp_path)
    assert (first.source, first.case_id, second.case_id) == ("nifti_pairs", "a", "b")
    drawing = read(first)
    require_boxes(drawing, Brainstem=BRAINSTEM)
    assert drawing.naming.unmapped == ["tumour"]
    assert second.read is None
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "background", "9": "Parotid_L"}}')
    with pytest.raises(
        LabelError, match=r"a: the label holds the values \[5\], which name no organ"
    ):
        read(first)
    (tmp_path / "dataset.json").write_text('{"labels": {"Brainstem": "one"}}')
    with pytest.raises(LabelError, match=r"a: dataset\.json does not name the label values"):
        read(first)


def put_pair(folder: Path, values: object, label: LabelArray | None = None) -> None:
    """Write a case with the values 1 and 2 in two folders, and what they mean in `dataset.json`."""
    write_ct(folder / "imagesTr" / "a_0000.nii.gz", make_ct())
    array = label_array({1: BRAINSTEM, 2: PAROTID_L}) if label is None else label
    put_label(folder / "labelsTr" / "a.nii.gz", array)
    (folder / "dataset.json").write_text(json.dumps({"labels": values}), encoding="utf-8")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_byte_order_mark_does_not_matter(tmp_path: Path, encoding: str) -> None:
    put_pair(tmp_path, {})
    meaning = {"labels": {"background": 0, "Brainstem": 1, "Parotid_L": 2}}
    (tmp_path / "dataset.json").write_bytes(json.dumps(meaning).encode(encoding))
    require_boxes(read(only(tmp_path)), Brainstem=BRAINSTEM, Parotid_L=PAROTID_L)


@pytest.mark.parametrize("name", ["ignore", "Ignore"])
def test_a_case_with_a_region_that_was_not_contoured_is_refused(tmp_path: Path, name: str) -> None:
    put_pair(tmp_path, {"background": 0, "Brainstem": 1, name: 2})
    names = OrganNames(organ_set="openkbp", table={"ignore": "ignore"})
    with pytest.raises(
        LabelError, match="a: it has voxels of 'ignore', which marks regions that were not"
    ):
        read(only(tmp_path), names)
    put_pair(tmp_path, {"background": 0, "Brainstem": 1, name: 2}, label_array({1: BRAINSTEM}))
    require_boxes(read(only(tmp_path)), Brainstem=BRAINSTEM)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"Brainstem": [1, 2], "Parotid_L": 2}, r"\[1, 2\] are the values of a region"),
        ({"Brainstem": 1, "Parotid_L": 1}, "'1' is listed twice"),
        ({"1": "Brainstem", "01": "Parotid_L"}, "'1' is listed twice"),
        ({"Brainstem": 1.5}, "'1.5' is not a whole number from 0 to 255"),
        ({"Brainstem": True}, "'True' is not a whole number"),
        ({"Brainstem": 1, "Parotid_L": 256}, "'256' is not a whole number from 0 to 255"),
        ({"Brainstem": -1}, "'-1' is not a whole number"),
        ({"Brainstem": 0, "Parotid_L": 1}, "gives the value 0 to 'Brainstem'; 0 is the background"),
        (["Brainstem"], "does not name the label values"),
    ],
)
def test_values_that_are_ambiguous_are_refused(tmp_path: Path, values: object, says: str) -> None:
    put_pair(tmp_path, values)
    with pytest.raises(LabelError, match=says):
        read(only(tmp_path))


def test_a_name_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    put_pair(tmp_path, {})
    (tmp_path / "dataset.json").write_text('{"labels": {"Brainstem": 1, "Brainstem": 2}}')
    with pytest.raises(LabelError, match="'Brainstem' is listed twice"):
        read(only(tmp_path))


# --- labels that name their segments


@pytest.mark.parametrize(
    ("ct", "label"),
    [
        ("anna/ct.nii.gz", "anna/Segmentation.seg.nrrd"),
        ("anna.nii.gz", "anna.seg.nrrd"),
        ("images/anna.nii.gz", "labels/anna.seg.nrrd"),
        ("pt_1/ct.nii.gz", "pt_1/label.seg.nrrd"),
    ],
)
def test_a_segmentation_of_slicer_is_read_by_its_names(tmp_path: Path, ct: str, label: str) -> None:
    write_ct(tmp_path / ct, make_ct())
    (tmp_path / label).parent.mkdir(exist_ok=True)
    fields = slicer_fields([("LeftParotid", 1, 0), ("Brainstem", 2, 0), ("GTV", 3, 0)])
    array = label_array({1: PAROTID_L, 2: BRAINSTEM, 3: PAROTID_R})
    write_seg_nrrd(tmp_path / label, [array], make_grid(), fields)
    drawing = read(only(tmp_path))
    require_boxes(drawing, Brainstem=BRAINSTEM, Parotid_L=PAROTID_L)
    assert drawing.naming.unmapped == ["GTV"]


def test_segments_in_layers_are_read(tmp_path: Path) -> None:
    write_ct(tmp_path / "anna.nii.gz", make_ct())
    layers = [label_array({1: BRAINSTEM}), label_array({1: PAROTID_L})]
    fields = slicer_fields([("Brainstem", 1, 0), ("Parotid_L", 1, 1)])
    write_seg_nrrd(tmp_path / "anna.seg.nrrd", layers, make_grid(), fields)
    require_boxes(read(only(tmp_path)), Brainstem=BRAINSTEM, Parotid_L=PAROTID_L)


def test_names_in_the_label_and_in_the_file_of_values_must_agree(tmp_path: Path) -> None:
    put_pair(tmp_path, {"Brain Stem": 1, "Parotid_L": 2})
    path = tmp_path / "labelsTr" / "a.nii.gz"
    array = label_array({1: BRAINSTEM, 2: PAROTID_L})
    write_named_nifti(path, array, make_grid(), {1: "brainstem", 2: "parotid_gland_left"})
    require_boxes(read(only(tmp_path)), Brainstem=BRAINSTEM, Parotid_L=PAROTID_L)
    write_named_nifti(path, array, make_grid(), {1: "parotid_gland_left", 2: "brainstem"})
    with pytest.raises(
        LabelError, match="names its value 1 'parotid_gland_left', the file of values 'Brain"
    ):
        read(only(tmp_path))


def test_a_mask_that_names_another_organ_than_its_file_is_refused(tmp_path: Path) -> None:
    put_pddca(tmp_path / "x", {"Parotid_L": PAROTID_L})
    mask = tmp_path / "x" / "structures" / "Parotid_L.nrrd"
    array = label_array({1: PAROTID_L})
    write_seg_nrrd(mask, [array], make_grid(), slicer_fields([("Segment_1", 1, 0)]))
    require_boxes(read(only(tmp_path)), Parotid_L=PAROTID_L)
    write_seg_nrrd(mask, [array], make_grid(), slicer_fields([("Parotid_R", 1, 0)]))
    with pytest.raises(
        LabelError, match=r"x: Parotid_L\.nrrd is called Parotid_L and names its segment 'Par"
    ):
        read(only(tmp_path))


@pytest.mark.parametrize("suffix", ["_label", "_seg"])
def test_files_beside_each_other_are_read_with_the_sets_values(tmp_path: Path, suffix: str) -> None:
    write_ct(tmp_path / "a.nii.gz", make_ct())
    put_label(tmp_path / f"a{suffix}.nii.gz", label_array({1: BRAINSTEM, 4: PAROTID_L}))
    write_ct(tmp_path / "unpaired.nii.gz", make_ct())
    case = only(tmp_path)
    assert case.case_id == "a"
    drawing = read(case)
    require_boxes(drawing, Brainstem=BRAINSTEM, Parotid_L=PAROTID_L)
    assert drawing.notes == ["the label's values were read as those of the organ set 'openkbp'"]


def test_a_label_without_its_image_is_refused(tmp_path: Path) -> None:
    write_ct(tmp_path / "images" / "a.nii.gz", make_ct())
    for name in ("a", "b"):
        put_label(tmp_path / "labels" / f"{name}.nii.gz", label_array({1: BRAINSTEM}))
    first, second = find_cases(tmp_path)
    require_boxes(read(first), Brainstem=BRAINSTEM)
    with pytest.raises(ScanError, match=r"b: labels has b\.nii\.gz, images has no CT"):
        read(second)


def test_a_case_folder_whose_label_is_named_after_the_ct_is_read(tmp_path: Path) -> None:
    write_ct(tmp_path / "anna" / "ct.nii.gz", make_ct())
    put_label(tmp_path / "anna" / "ct_seg.nii.gz", label_array({1: BRAINSTEM}))
    case = only(tmp_path)
    assert case.case_id == "anna"
    require_boxes(read(case), Brainstem=BRAINSTEM)


def test_a_case_folder_is_read(tmp_path: Path) -> None:
    write_ct(tmp_path / "anna" / "image.nii.gz", make_ct())
    put_label(tmp_path / "anna" / "seg.nii.gz", label_array({1: BRAINSTEM}))
    case = only(tmp_path)
    assert (case.source, case.case_id) == ("nifti_pairs", "anna")
    require_boxes(read(case), Brainstem=BRAINSTEM)


# --- finding


def test_several_sources_are_found_and_one_can_be_chosen(tmp_path: Path) -> None:
    put_pddca(tmp_path / "a" / "0522c0001")
    put_openkbp(tmp_path / "b" / "pt_1")
    put_openkbp(tmp_path / "studies" / "pt_9")
    found = find_cases(tmp_path, leave_out=tmp_path / "studies")
    assert [(c.source, c.case_id) for c in found] == [("pddca", "0522c0001"), ("openkbp", "pt_1")]
    assert [c.case_id for c in find_cases(tmp_path / "b", source="openkbp")] == ["pt_1"]
    with pytest.raises(ScanError, match="no case found"):
        find_cases(tmp_path / "b", source="dicom")
    with pytest.raises(ConfigError, match="unknown source 'xnat'"):
        find_cases(tmp_path, source="xnat")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    put_openkbp(tmp_path / "pt_1")
    (tmp_path / "again").symlink_to(tmp_path)
    assert only(tmp_path).case_id == "pt_1"


def test_duplicate_ids_are_found_ignoring_case(tmp_path: Path) -> None:
    put_openkbp(tmp_path / "a" / "pt_1")
    put_openkbp(tmp_path / "b" / "pt_1")
    put_pddca(tmp_path / "PT_1")
    assert len(duplicate_ids(find_cases(tmp_path))["pt_1"]) == 3


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no such folder"):
        find_cases(tmp_path / "none")
    with pytest.raises(ScanError, match="no case found"):
        find_cases(tmp_path)
