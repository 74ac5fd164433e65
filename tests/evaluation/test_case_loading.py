import json
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lib.errors import ConfigError, GeometryError, LabelError, ScanError
from lib.evaluation.case_loading import (
    CroppedMask,
    card_values,
    find_cases,
    read_contours,
    read_labels_file,
)
from lib.imaging.scans import write_label
from lib.imaging.volumes import LabelVolume
from lib.organs.table import ORGAN_SETS
from tests.phantoms import make_grid, make_label, rotation
from tests.segment_files import slicer_fields, write_seg_nrrd

OPENKBP = ORGAN_SETS["openkbp"]


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def write(path: Path, array: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Path:
    write_label(path, LabelVolume(array, make_grid(), {}))
    return path


def mask(value: int, stored: int = 1) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """One organ of the phantom's label, as its own volume."""
    return np.asarray(np.where(make_label() == value, np.uint8(stored), np.uint8(0)))


def test_cases_are_volumes_and_folders_of_masks(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", make_label())
    write(tmp_path / "b.nrrd", make_label())
    write(tmp_path / "c" / "Brainstem.nrrd", mask(1))
    write(tmp_path / "d" / "segmentations" / "Parotid-Lt.nrrd", mask(1))
    write(tmp_path / "e" / "structures" / "BrainStem.nii", mask(1))
    write(tmp_path / "e" / "img.nrrd", mask(1))
    write(tmp_path / "f" / "label.nii.gz", make_label())
    (tmp_path / "card.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert list(find_cases(tmp_path)) == ["a", "b", "c", "d", "e", "f"]


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cases; expected files such as CASE"):
        find_cases(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        find_cases(tmp_path / "missing")


def test_one_case_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", make_label())
    write(tmp_path / "a.nrrd", make_label())
    with pytest.raises(ConfigError, match="are the same case, a; keep one"):
        find_cases(tmp_path)


def test_masks_are_read_by_their_names_and_others_are_listed(
    tmp_path: Path, pool: Executor
) -> None:
    write(tmp_path / "a" / "Optic-Nerve-Lt.nrrd", mask(1, stored=255))
    write(tmp_path / "a" / "parotid_r.nii.gz", mask(2))
    write(tmp_path / "a" / "Brainstem.nii", np.zeros(make_grid().shape_vox, np.uint8))
    write(tmp_path / "a" / "GTV.nrrd", mask(7))
    contours = read_contours("a", tmp_path / "a", pool=pool)
    assert set(contours.organs) == {"OpticNrv_L", "Parotid_R"}
    assert contours.unmatched == ["GTV"]
    assert contours.grid.is_same_as(make_grid())
    piece = contours.organs["Parotid_R"]
    # The box [3:5, 5:9, 2:5] of the phantom's label.
    assert (piece.start_vox, piece.mask.shape) == ((3, 5, 2), (2, 4, 3))
    whole = tuple(slice(0, n) for n in make_grid().shape_vox)
    np.testing.assert_array_equal(piece.within((whole[0], whole[1], whole[2])), mask(2) > 0)


def test_a_piece_outside_of_a_box_is_empty_there() -> None:
    piece = CroppedMask(np.ones((2, 2, 2), bool), (4, 4, 4))
    assert not piece.within((slice(0, 4), slice(0, 9), slice(0, 9))).any()
    assert piece.within((slice(5, 9), slice(0, 9), slice(0, 5))).sum() == 2


def test_files_that_are_not_masks_are_refused(tmp_path: Path, pool: Executor) -> None:
    write(tmp_path / "several" / "Brainstem.nrrd", make_label())
    with pytest.raises(LabelError, match="contains several values up to 7"):
        read_contours("several", tmp_path / "several", pool=pool)
    write(tmp_path / "twice" / "Brainstem.nrrd", mask(1))
    write(tmp_path / "twice" / "brain-stem.nrrd", mask(2))
    with pytest.raises(LabelError, match="two contours are named Brainstem"):
        read_contours("twice", tmp_path / "twice", pool=pool)
    write(tmp_path / "none" / "GTV.nrrd", mask(1))
    with pytest.raises(LabelError, match="none of GTV is the name"):
        read_contours("none", tmp_path / "none", pool=pool)


def test_masks_on_two_grids_are_refused(tmp_path: Path, pool: Executor) -> None:
    write(tmp_path / "a" / "Brainstem.nrrd", mask(1))
    turned = make_grid(directions=rotation(about_z_deg=20))
    write_label(tmp_path / "a" / "Larynx.nrrd", LabelVolume(mask(2), turned, {}))
    with pytest.raises(GeometryError, match=r"a/Larynx\.nrrd: the label lies on"):
        read_contours("a", tmp_path / "a", pool=pool)


def test_a_case_with_two_label_volumes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "label.nrrd", make_label())
    write(tmp_path / "a" / "seg.nrrd", make_label())
    with pytest.raises(ScanError, match="one label volume expected"):
        find_cases(tmp_path)


def test_given_values_are_used(tmp_path: Path, pool: Executor) -> None:
    path = write(tmp_path / "a.nii.gz", make_label())
    given = {"Brain-Stem": 1, "GTV": 2}
    contours = read_contours("a", path, values=given, pool=pool)
    assert set(contours.organs) == {"Brainstem"}
    assert contours.unmatched == ["value 7", "GTV (value 2)"]
    assert contours.values_from == "--labels"


def test_values_of_the_card_beside_a_label_are_used(tmp_path: Path, pool: Executor) -> None:
    path = write(tmp_path / "a.nii.gz", make_label())
    card = {"Larynx": 1, "Parotid_R": 2, "Brainstem": 7}
    (tmp_path / "a.json").write_text(json.dumps({"labels": card}))
    contours = read_contours("a", path, pool=pool)
    assert set(contours.organs) == set(card)
    assert contours.values_from == "the card beside it"


def test_values_that_fit_one_organ_set_are_read_with_it(tmp_path: Path, pool: Executor) -> None:
    label = make_label()
    label[0, 0, 0] = 9
    contours = read_contours("a", write(tmp_path / "a.nrrd", label), pool=pool)
    assert set(contours.organs) == {"Brainstem", "OpticChiasm", "Parotid_R", "Glnd_Submand_R"}
    assert contours.values_from == "organ set pddca"


def test_values_that_fit_several_organ_sets_are_refused(tmp_path: Path, pool: Executor) -> None:
    path = write(tmp_path / "a.nii.gz", make_label())
    with pytest.raises(
        ConfigError, match=r"\[1, 2, 7\] of a\.nii\.gz fit the organ sets pddca, ope"
    ):
        read_contours("a", path, pool=pool)
    contours = read_contours("a", path, hint={"SpinalCord": 2}, pool=pool)
    assert contours.values == OPENKBP
    label = make_label()
    label[0, 0, 0] = 200
    with pytest.raises(ConfigError, match="fit no organ set"):
        read_contours("b", write(tmp_path / "b.nii.gz", label), pool=pool)


@pytest.mark.parametrize(
    "text", ["Brainstem: 1\nParotid_L: 4\n", '{"Brainstem": 1, "Parotid_L": 4}']
)
def test_a_labels_file_is_yaml_or_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels").write_text(text)
    assert read_labels_file(tmp_path / "labels") == {"Brainstem": 1, "Parotid_L": 4}


def test_a_labels_file_may_be_a_set() -> None:
    assert read_labels_file(Path("openkbp")) == dict(OPENKBP)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2]", "expected a mapping of organ names to values"),
        ("Brainstem: one", "expected an organ name and an integer"),
        ("Brainstem: 0", "expected an organ name and an integer"),
        ("Brainstem: 1\nLarynx: 1", "two names have the same value"),
        ("{", "cannot be read as YAML or JSON"),
    ],
)
def test_an_invalid_labels_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "labels.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_labels_file(tmp_path / "labels.yaml")


def test_a_card_without_labels_is_ignored(tmp_path: Path) -> None:
    assert card_values(tmp_path / "a.nii.gz") is None
    (tmp_path / "a.json").write_text('{"image": "a"}')
    assert card_values(tmp_path / "a.nii.gz") is None
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        card_values(tmp_path / "a.nii.gz")


def test_a_label_that_names_its_segments_is_read_by_these_names(
    tmp_path: Path, pool: Executor
) -> None:
    # The phantom has the values 1, 2 and 7, which fit the set of OpenKBP with other meanings.
    fields = slicer_fields([("Parotid_L", 1, 0), ("Parotid_R", 2, 0), ("Mark", 7, 0)])
    file = write_seg_nrrd(tmp_path / "a.seg.nrrd", [make_label()], make_grid(), fields)
    assert find_cases(tmp_path) == {"a": file}
    contours = read_contours("a", file, pool=pool)
    assert set(contours.organs) == {"Parotid_L", "Parotid_R"}
    assert contours.organs["Parotid_R"].mask.sum() == (make_label() == 2).sum()
    assert contours.unmatched == ["Mark (value 7)"]
    same = {"left parotid": 1, "rt parotid": 2}
    assert set(read_contours("a", file, values=same, pool=pool).organs) == set(contours.organs)
    with pytest.raises(
        LabelError, match="a: the file names its value 1 'Parotid_L', --labels 'Brainstem'"
    ):
        read_contours("a", file, values=OPENKBP, pool=pool)
