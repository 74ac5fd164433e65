"""Segments of a SEG: numbers, names, sides from codes, empty segments; attributes that frames need."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from lib.dicom.seg import read_seg
from lib.dicom.structures import label_from_structures
from lib.errors import LabelError
from tests.dicom.organ_phantom import LABELS, Case, make_case
from tests.dicom.seg_files import FrameSpec, SegSpec, edited, plane, read, voxels, write_viewer_seg


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("seg_segments") / "ct")


def two_frames(case: Case) -> list[FrameSpec]:
    """Return a frame of 4 pixels of segment 1, and one of a pixel of segment 2."""
    return [
        FrameSpec(1, case.headers[4], plane(case, (2, 3, 3, 4))),
        FrameSpec(2, case.headers[5], plane(case, (9, 9, 9, 9))),
    ]


def test_two_segments_of_one_number_are_refused(case: Case, tmp_path: Path) -> None:
    spec = SegSpec({1: "Parotid_L", 2: "PTV70"}, two_frames(case)[:1])
    message = "the segments 'Parotid_L' and 'PTV70' have the same SegmentNumber 1"
    with pytest.raises(LabelError, match=message):
        edited(
            case,
            tmp_path / "x.dcm",
            spec,
            lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 1),
        )


def put_sides(*sides: tuple[str, str], keyword: str = "nested") -> Callable[[Any], None]:
    """Return a change that gives the segments codes of the parotid gland with a modifier each."""

    def change(dataset: Any) -> None:
        for segment, (value, meaning) in zip(dataset.SegmentSequence, sides, strict=True):
            modifier, code = Dataset(), segment.SegmentedPropertyTypeCodeSequence[0]
            modifier.CodeValue, modifier.CodeMeaning = value, meaning
            modifier.CodingSchemeDesignator = "SCT"
            place = code if keyword == "nested" else segment
            place.SegmentedPropertyTypeModifierCodeSequence = [modifier]

    return change


@pytest.mark.parametrize("place", ["nested", "beside"])
@pytest.mark.parametrize(
    "sides",
    [
        (("7771000", "Left"), ("24028007", "Right")),
        (("G-A101", "Left"), ("G-A100", "Right")),
        (("C25229", "left side"), ("C25228", "RIGHT")),
    ],
)
def test_the_side_of_a_label_without_one_is_taken_from_the_code(
    case: Case, tmp_path: Path, sides: tuple[tuple[str, str], tuple[str, str]], place: str
) -> None:
    spec = SegSpec({1: "Parotid", 2: "Parotid"}, two_frames(case))
    structures = edited(case, tmp_path / "x.dcm", spec, put_sides(*sides, keyword=place))
    assert {name: int(mask.sum()) for name, mask in structures.masks.items()} == {
        "Parotid Left": 4,
        "Parotid Right": 1,
    }
    label = label_from_structures(structures, LABELS, case.grid, "case7")
    assert label.array[2, 3, 4] == LABELS["Parotid_L"]
    assert label.array[9, 9, 5] == LABELS["Parotid_R"]
    assert "segment 1, 'Parotid', read as 'Parotid Left': its code has the side" in (
        structures.changes
    )


def test_the_side_in_the_meaning_of_the_code_is_read(case: Case, tmp_path: Path) -> None:
    def change(dataset: Any) -> None:
        for segment, side in zip(dataset.SegmentSequence, ("Left", "Right"), strict=True):
            segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = f"{side} parotid gland"

    spec = SegSpec({1: "Parotid", 2: "Parotid"}, two_frames(case))
    structures = edited(case, tmp_path / "x.dcm", spec, change)
    assert set(structures.masks) == {"Parotid Left", "Parotid Right"}


def test_a_label_and_a_code_of_two_sides_are_refused(case: Case, tmp_path: Path) -> None:
    spec = SegSpec({1: "Parotid_L", 2: "Parotid_R"}, two_frames(case))
    right = ("24028007", "Right")
    message = "case7: segment 1 is called 'Parotid_L', but its code says right"
    with pytest.raises(LabelError, match=message):
        edited(case, tmp_path / "x.dcm", spec, put_sides(right, right))


def test_a_code_of_both_sides_or_of_an_organ_without_sides_changes_nothing(
    case: Case, tmp_path: Path
) -> None:
    spec = SegSpec({1: "Parotid", 2: "Brainstem"}, two_frames(case))
    sides = put_sides(("51440002", "Right and left"), ("7771000", "Left"))
    structures = edited(case, tmp_path / "x.dcm", spec, sides)
    assert set(structures.masks) == {"Parotid", "Brainstem"}
    assert structures.changes == ()


def test_of_two_segments_of_one_name_the_one_with_voxels_is_read(
    case: Case, tmp_path: Path
) -> None:
    offered: list[str] = []

    def select(names: Sequence[str]) -> Sequence[str]:
        offered.extend(names)
        return names

    spec = SegSpec({2: "A", 1: "A", 3: "a"}, two_frames(case)[:1])
    write_viewer_seg(tmp_path / "x.dcm", spec)
    structures = read_seg(
        tmp_path / "x.dcm", case.headers, case.grid, image_id="case7", select=select
    )
    assert structures.masks["A"].sum() == 4
    assert offered == ["A"]
    assert structures.changes == ("segments without a voxel: 'A', 'a'",)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("BINARY", lambda d: delattr(d, "SegmentationType"), "SegmentationType is missing"),
        ("FRACTIONAL", lambda d: setattr(d, "MaximumFractionalValue", 0), "Value 0; 1 or more"),
        (
            "BINARY",
            lambda d: delattr(
                d.PerFrameFunctionalGroupsSequence[0], "SegmentIdentificationSequence"
            ),
            "frame 1 of the SEG names no segment",
        ),
        ("BINARY", lambda d: setattr(d, "Rows", 0), "2 frames of 0 x 48 pixels"),
        ("BINARY", lambda d: setattr(d, "Columns", 60_000), "2 frames of 40 x 60000 pixels"),
        ("BINARY", lambda d: setattr(d, "BitsAllocated", 99), "of 99 bits"),
        (
            "BINARY",
            lambda d: d.PerFrameFunctionalGroupsSequence.pop(),
            "has 2 frames but describes 1",
        ),
    ],
)
def test_what_is_assumed_nowhere_is_refused_if_it_is_missing(
    case: Case, tmp_path: Path, kind: str, change: Callable[[Any], object], message: str
) -> None:
    spec = SegSpec({1: "A", 2: "B"}, two_frames(case), kind=kind)
    for frame in spec.frames:
        frame.pixels_yx *= 255 if kind == "FRACTIONAL" else 1
    with pytest.raises(LabelError, match=f"case7: .*{message}"):
        edited(case, tmp_path / "x.dcm", spec, change)


def test_the_background_value_of_a_label_map_is_no_segment(case: Case, tmp_path: Path) -> None:
    pixels = np.full_like(plane(case), 255)
    pixels[6, 3:5] = 1
    spec = SegSpec({1: "A"}, [FrameSpec(0, case.headers[3], pixels)], kind="LABELMAP")

    def change(dataset: Any) -> None:
        dataset.add_new("PixelPaddingValue", "US", 255)

    structures = edited(case, tmp_path / "x.dcm", spec, change)
    assert voxels(structures, "A") == [[3, 6, 3], [4, 6, 3]]


def test_a_seg_on_every_second_slice_is_told(case: Case, tmp_path: Path) -> None:
    frames = [FrameSpec(1, case.headers[z], plane(case, (2, 3, 2, 3))) for z in (2, 4, 6)]
    structures = read(case, tmp_path, SegSpec({1: "A"}, frames))
    assert structures.changes == ("A has no voxel on the slices between 3 others",)
