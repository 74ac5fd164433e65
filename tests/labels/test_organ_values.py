"""Values and names of submitted labels, and the sentences about what was changed."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from lib.errors import LabelError
from lib.imaging.geometry import Grid
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import write_label
from lib.imaging.volumes import LabelVolume
from lib.labels.organ_values import read_organs
from lib.organs.table import ORGAN_SETS
from tests.phantoms import make_grid
from tests.segment_files import slicer_fields, write_named_nifti, write_seg_nrrd

LABELS = ORGAN_SETS["openkbp"]
BRAINSTEM, CORD, PAROTID_L = LABELS["Brainstem"], LABELS["SpinalCord"], LABELS["Parotid_L"]


def holding(*values: int) -> LabelArray:
    return np.array(values, np.uint8).reshape(-1, 1, 1)


def named(**names: int) -> list[dict[str, object]]:
    return [{"name": name, "idx": index} for name, index in names.items()]


def read(array: LabelArray, info: object) -> tuple[list[int], tuple[str, ...]]:
    """Return the stored values and the changes of a label in a file."""
    grid = Grid.from_affine((array.shape[0], 1, 1), np.eye(4))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "label.nii.gz"
        write_label(path, LabelVolume(array, grid, {}))
        label, changes = read_organs(
            path, image_id="pt_1", grid=grid, label_info=info, labels=LABELS
        )
    return [int(v) for v in label.array.ravel()], changes


def remapped(array: LabelArray, info: object) -> list[int]:
    return read(array, info)[0]


def test_without_names_the_values_are_those_of_the_organ_set() -> None:
    assert remapped(holding(0, 1, 4, 7), []) == [0, 1, 4, 7]


def test_without_names_a_strange_value_is_refused() -> None:
    with pytest.raises(LabelError, match=r"pt_1: the label holds the values \[9\], which name no"):
        remapped(holding(0, 1, 9), [])


def test_values_follow_idx_where_it_is_the_voxels_value() -> None:
    assert remapped(holding(0, 5, 9), named(LeftParotid=5, BrainStem=9)) == [
        0,
        PAROTID_L,
        BRAINSTEM,
    ]


def test_values_follow_the_lists_order_where_slicer_left_a_segment_out() -> None:
    # In `idx` Slicer counts the segment that it left out, but it numbers the segments of the file from 1.
    info = named(Parotid_L=2, Brainstem=3)
    assert remapped(holding(0, 1, 2), info) == [0, PAROTID_L, BRAINSTEM]


def test_two_differing_interpretations_of_the_values_are_refused() -> None:
    with pytest.raises(
        LabelError, match=r"can be read as \{2: 'Parotid_L'\} or, by the list's order"
    ):
        remapped(holding(0, 2), named(Parotid_L=2, Brainstem=3))


def test_two_interpretations_that_agree_on_the_present_values_are_accepted() -> None:
    assert remapped(holding(0, 1), named(Brainstem=1, SpinalCord=3)) == [0, BRAINSTEM]


def test_an_organ_outside_the_set_is_refused() -> None:
    with pytest.raises(
        LabelError, match=r"pt_1: 'GTV' is not an organ of this server; its organs are Br"
    ):
        remapped(holding(1, 2), named(Brainstem=1, GTV=2))


def test_an_empty_segment_may_have_any_name() -> None:
    assert remapped(holding(0, 1), named(Brainstem=1, GTV=2)) == [0, BRAINSTEM]


def test_a_value_without_a_name_is_refused() -> None:
    with pytest.raises(LabelError, match=r"holds the values \[1, 5\].*every value needs a name"):
        remapped(holding(1, 5), named(Brainstem=1, SpinalCord=2))


def test_two_segments_of_one_organ_are_refused() -> None:
    with pytest.raises(LabelError, match="two segments mean SpinalCord"):
        remapped(holding(1, 2), named(Cord=1, SpinalCord=2))


@pytest.mark.parametrize("entry", [{"name": "Brainstem"}, {"name": "Brainstem", "idx": "one"}])
def test_an_entry_without_a_number_is_refused(entry: dict[str, object]) -> None:
    with pytest.raises(LabelError, match="whole number 'idx'"):
        remapped(holding(1), [entry])


def test_an_empty_label_stays_empty() -> None:
    assert remapped(holding(0, 0), named(Brainstem=1, SpinalCord=2)) == [0, 0]


# --- what label_info may be


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ("Brainstem", "label_info is str; a list"),
        ({"Brainstem": 1}, "label_info is dict; a list"),
        (5, "label_info is int; a list"),
        (["Brainstem"], "entry Brainstem has no text 'name'"),
        ([{"idx": 1}], "has no text 'name'"),
        ([{"name": None, "idx": 1}], "has no text 'name'"),
        ([{"name": "Brainstem", "idx": None}], "whole number 'idx'"),
        ([{"name": "Brainstem", "idx": True}], "whole number 'idx'"),
        ([{"name": "Brainstem", "idx": 1.5}], "whole number 'idx'"),
        ([{"name": "Brainstem", "idx": float("nan")}], "whole number 'idx'"),
        ([{"name": "Brainstem", "idx": [1]}], "whole number 'idx'"),
        (
            [{"name": "Brainstem", "idx": 1}, {"name": "SpinalCord", "idx": 1}],
            "gives the number 1 to 'Brainstem' and to 'SpinalCord'",
        ),
        (
            [{"name": "Brainstem", "idx": 1}, {"name": "Brainstem", "idx": 1}],
            "gives the number 1 to 'Brainstem' and to 'Brainstem'",
        ),
    ],
)
def test_a_list_of_another_form_is_refused(info: object, says: str) -> None:
    with pytest.raises(LabelError, match=says):
        remapped(holding(0, 1), info)


@pytest.mark.parametrize("idx", ["1", 1.0, 1])
def test_a_whole_number_may_have_another_form(idx: object) -> None:
    assert remapped(holding(0, 1), [{"name": "SpinalCord", "id": idx}]) == [0, CORD]


def test_names_that_differ_in_case_only_are_one_organ() -> None:
    with pytest.raises(LabelError, match="two segments mean Brainstem"):
        remapped(holding(1, 2), named(Brainstem=1, BRAINSTEM=2))


def test_a_name_may_be_listed_twice_if_one_segment_is_empty() -> None:
    info = [{"name": "SpinalCord", "idx": 1}, {"name": "SpinalCord", "idx": 2}]
    assert remapped(holding(0, 2), info) == [0, CORD]


def test_the_background_may_be_listed_with_its_value() -> None:
    # Rows of a table begin at 1, so these numbers are the values.
    assert remapped(holding(0, 1), named(background=0, Brainstem=1)) == [0, BRAINSTEM]
    assert remapped(holding(0, 1, 2), named(background=0, SpinalCord=1, Brainstem=2)) == [
        0,
        CORD,
        BRAINSTEM,
    ]


def test_numbers_that_are_no_rows_of_a_table_are_values() -> None:
    # The values 2 and 1 are named; as the order of the list they would be exchanged.
    assert remapped(holding(1, 2), named(SpinalCord=2, Brainstem=1)) == [BRAINSTEM, CORD]
    with pytest.raises(LabelError, match="every value needs a name"):
        remapped(holding(1, 3), named(SpinalCord=3, Brainstem=2, Larynx=5))


# --- what is said about changes


def test_a_label_with_this_servers_names_and_values_is_unchanged() -> None:
    assert read(holding(0, 1, 4), []) == ([0, 1, 4], ())
    info = named(Brainstem=BRAINSTEM, Parotid_L=PAROTID_L)
    assert read(holding(0, 1, 4), info) == ([0, 1, 4], ())


def test_other_names_and_values_are_changes() -> None:
    stored, changes = read(
        holding(0, 1, 9), [{"name": "Left Parotid", "idx": 9}, *named(Brainstem=1)]
    )
    assert stored == [0, BRAINSTEM, PAROTID_L]
    assert changes == (
        "'Left Parotid' was stored as Parotid_L",
        "the values were stored by their names: 9 as 4 (Parotid_L)",
    )


def test_a_reading_by_the_order_of_the_list_is_a_change() -> None:
    _, changes = read(holding(0, 1, 2), named(Parotid_L=2, Brainstem=3))
    assert changes == (
        "the values were read as the order of the segments in label_info",
        "the values were stored by their names: 1 as 4 (Parotid_L), 2 as 1 (Brainstem)",
    )


# --- files that name their segments

GRID = make_grid()


def boxes(*placed: tuple[int, int]) -> LabelArray:
    """Return a volume with a box of 3 x 4 x 4 voxels for each start along the first axis and value."""
    array = np.zeros(GRID.shape_vox, np.uint8)
    for start, value in placed:
        array[start : start + 3, 4:8, 3:7] = value
    return array


def read_file(path: Path, info: object = ()) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return value -> number of voxels of the stored label, and the changes."""
    label, changes = read_organs(path, image_id="pt_1", grid=GRID, label_info=info, labels=LABELS)
    values, counts = np.unique(label.array[label.array > 0], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True)), changes


def seg_nrrd(folder: Path, *layers: LabelArray, **segments: tuple[int, int]) -> Path:
    """Write a `.seg.nrrd`; `segments` are name -> value and layer."""
    fields = slicer_fields([(name, value, layer) for name, (value, layer) in segments.items()])
    return write_seg_nrrd(folder / "a.seg.nrrd", layers, GRID, fields)


def test_the_names_in_a_file_decide(tmp_path: Path) -> None:
    # One box of value 1 and two of value 2.
    array = boxes((1, 1), (6, 2), (12, 2))
    file = seg_nrrd(tmp_path, array, LeftParotid=(1, 0), Brainstem=(2, 0), empty=(3, 0))
    stored, changes = read_file(file)
    assert stored == {PAROTID_L: 48, BRAINSTEM: 96}
    assert changes == (
        "'LeftParotid' was stored as Parotid_L",
        "the values were stored by their names: 1 as 4 (Parotid_L), 2 as 1 (Brainstem)",
    )


def test_rows_of_a_table_do_not_exchange_the_organs_of_a_file(tmp_path: Path) -> None:
    # 3D Slicer lists the segments by row; the values are in the order of their creation.
    file = seg_nrrd(tmp_path, boxes((1, 1), (6, 2), (12, 2)), Parotid_L=(2, 0), Brainstem=(1, 0))
    stored, changes = read_file(file, named(Parotid_L=1, Brainstem=2))
    assert stored == {BRAINSTEM: 48, PAROTID_L: 96}
    assert (
        "the numbers in label_info are those of a list; the values in the file were used" in changes
    )
    assert read_file(file, named(Parotid_L=2, Brainstem=1))[0] == stored


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (
            named(Larynx=1, Brainstem=2),
            "the file names its segments 'Parotid_L', 'Brainstem', label_info",
        ),
        (named(Parotid_L=1), "label_info names 'Parotid_L'; equal names expected"),
        (
            named(Parotid_L=1, Brainstem=2, Larynx=3),
            "names 'Brainstem', 'Larynx', 'Parotid_L'; equal",
        ),
        (named(Brainstem=2, Parotid_L=1), r"values \{'Brainstem': 1, 'Parotid_L': 2\}, label_info"),
    ],
)
def test_a_list_that_contradicts_the_file_is_refused(
    tmp_path: Path, info: object, says: str
) -> None:
    file = seg_nrrd(tmp_path, boxes((1, 1), (6, 2)), Parotid_L=(2, 0), Brainstem=(1, 0))
    with pytest.raises(LabelError, match=says):
        read_file(file, info)


def test_unknown_names_in_a_file_are_refused_by_name(tmp_path: Path) -> None:
    file = seg_nrrd(tmp_path, boxes((1, 1), (6, 2)), GTV=(1, 0), Segment_2=(2, 0))
    with pytest.raises(
        LabelError, match="'GTV', 'Segment_2' are no organs of this server; its organs are"
    ):
        read_file(file)


def test_the_segments_that_slicer_does_not_list_are_not_stored(tmp_path: Path) -> None:
    file = seg_nrrd(tmp_path, boxes((1, 1), (6, 2)), background=(1, 0), Larynx=(2, 0))
    stored, changes = read_file(file, named(Larynx=2))
    assert stored == {LABELS["Larynx"]: 48}
    assert changes[0] == "'background' was not stored: it is no organ"


def test_a_shared_voxel_of_two_layers_belongs_to_the_smaller_organ(tmp_path: Path) -> None:
    # Boxes at 1 and 4 make six planes of one organ; the box of the other shares the last of them.
    larger, smaller = boxes((1, 1), (4, 1)), boxes((6, 1))
    file = seg_nrrd(tmp_path, larger, smaller, Brainstem=(1, 0), SpinalCord=(1, 1))
    stored, changes = read_file(file)
    assert stored == {BRAINSTEM: 6 * 16 - 16, CORD: 3 * 16}
    assert changes == ("Brainstem & SpinalCord share 16 voxels, assigned to the smaller organ",)


def test_layers_that_share_more_than_half_an_organ_are_refused(tmp_path: Path) -> None:
    file = seg_nrrd(tmp_path, boxes((1, 1)), boxes((2, 1)), Brainstem=(1, 0), SpinalCord=(1, 1))
    with pytest.raises(LabelError, match=r"share 32 voxels; one of them has the wrong name"):
        read_file(file)


def test_an_organ_in_two_layers_is_refused(tmp_path: Path) -> None:
    file = seg_nrrd(tmp_path, boxes((1, 1)), boxes((8, 1)), Cord=(1, 0), SpinalCord=(1, 1))
    with pytest.raises(LabelError, match="two segments mean SpinalCord"):
        read_file(file)


def test_floats_are_refused_whatever_the_file_names(tmp_path: Path) -> None:
    file = write_named_nifti(
        tmp_path / "a.nii.gz", boxes((1, 1)).astype(np.float32), GRID, {1: "Larynx"}
    )
    with pytest.raises(LabelError, match="whole numbers expected"):
        read_file(file)
