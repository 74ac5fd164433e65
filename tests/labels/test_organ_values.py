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
