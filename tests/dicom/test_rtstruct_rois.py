"""Attribution of contours to ROIs: numbers, names, sides, frames of reference; forms of the coordinates."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from lib.errors import GeometryError, LabelError
from tests.dicom.rtstruct_case import HOLE, SQUARE, RtstructCase
from tests.phantoms import make_ct
from tests.rtstruct_files import RoiSpec


@pytest.fixture
def two_rois(tmp_path: Path) -> RtstructCase:
    """ROI 1, `Parotid_L`, of 36 voxels on slice 4, and ROI 2, `PTV70`, of 4 voxels on slice 6."""
    case = RtstructCase(make_ct(), tmp_path)
    case.write(case.roi((SQUARE, 4), name="Parotid_L"), case.roi((HOLE, 6), name="PTV70"))
    return case


def sizes(case: RtstructCase, **options: Any) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in case.read(**options).masks.items()}


def only_parotid(names: object) -> list[str]:
    return ["Parotid_L"]


def refer(*numbers: int) -> Callable[[Any], None]:
    """Return a change that makes the contour items refer to these ROI numbers."""

    def change(dataset: Any) -> None:
        for item, number in zip(dataset.ROIContourSequence, numbers, strict=True):
            item.ReferencedROINumber = number

    return change


# --- numbers


def test_two_rois_of_one_number_are_refused_even_if_one_of_them_is_wanted(
    two_rois: RtstructCase,
) -> None:
    def change(dataset: Any) -> None:
        dataset.StructureSetROISequence[1].ROINumber = 1
        refer(1, 1)(dataset)

    two_rois.edit(change)
    message = "case7: the ROIs 'Parotid_L', 'PTV70' have the same ROINumber 1"
    for select in (tuple, only_parotid):
        with pytest.raises(LabelError, match=message):
            two_rois.read(select=select)


def test_empty_rois_of_one_number_do_not_matter(two_rois: RtstructCase) -> None:
    def change(dataset: Any) -> None:
        for name in ("Bolus", "Couch"):
            roi = deepcopy(dataset.StructureSetROISequence[0])
            roi.ROINumber, roi.ROIName = 7, name
            dataset.StructureSetROISequence.append(roi)

    two_rois.edit(change)
    assert sizes(two_rois) == {"Parotid_L": 36, "PTV70": 4}


def test_a_roi_that_is_listed_twice_is_one(two_rois: RtstructCase) -> None:
    two_rois.edit(
        lambda d: d.StructureSetROISequence.append(deepcopy(d.StructureSetROISequence[0]))
    )
    assert sizes(two_rois) == {"Parotid_L": 36, "PTV70": 4}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            (0, 1),
            "contours refer to ROI 0, which the RTSTRUCT does not describe, while 'PTV70' has",
        ),
        ((2, 3), "contours refer to ROI 3, which .*, while 'Parotid_L' has no item"),
        ((1, 1), "contours stand in 2 items for ROI 1, while 'PTV70' has no item"),
    ],
)
def test_numbers_that_fit_no_roi_are_refused(
    two_rois: RtstructCase, numbers: tuple[int, int], message: str
) -> None:
    two_rois.edit(refer(*numbers))
    with pytest.raises(LabelError, match=message):
        two_rois.read(select=only_parotid)


def test_contours_of_a_roi_in_two_items_are_joined_if_every_roi_has_one(
    two_rois: RtstructCase,
) -> None:
    def change(dataset: Any) -> None:
        item = deepcopy(dataset.ROIContourSequence[1])
        item.ReferencedROINumber = 1
        dataset.ROIContourSequence.append(item)

    two_rois.edit(change)
    assert sizes(two_rois) == {"Parotid_L": 36 + 4, "PTV70": 4}
    assert "contours stand in 2 items for ROI 1; joined" in two_rois.read().changes


def test_contours_of_a_deleted_roi_are_left_out_if_every_roi_has_its_own(
    two_rois: RtstructCase,
) -> None:
    def change(dataset: Any) -> None:
        item = deepcopy(dataset.ROIContourSequence[0])
        item.ReferencedROINumber = 9
        dataset.ROIContourSequence.append(item)

    two_rois.edit(change)
    assert sizes(two_rois) == {"Parotid_L": 36, "PTV70": 4}
    (change_note,) = two_rois.read().changes
    assert change_note.startswith("contours refer to ROI 9")
    assert change_note.endswith("left out")


# --- names and sides


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "POINT"])
def test_of_two_rois_of_one_name_the_one_that_is_drawn_is_read(
    two_rois: RtstructCase, kind: str
) -> None:
    contours: list[Any] = [[(0, 0, 130)]] if kind == "POINT" else []
    empty = RoiSpec("Parotid_L", contours, kind)
    two_rois.write(empty, two_rois.roi((SQUARE, 4), name="Parotid_L"))
    assert sizes(two_rois) == {"Parotid_L": 36}
    structures = two_rois.read()
    assert structures.names == ("Parotid_L", "Parotid_L")
    assert structures.changes[0].startswith("ROIs without a closed contour: 'Parotid_L'")


def test_only_drawn_rois_are_offered_for_selection(two_rois: RtstructCase) -> None:
    offered: list[str] = []

    def select(names: Any) -> list[str]:
        offered.extend(names)
        return ["Parotid_L"]

    two_rois.write(
        RoiSpec("LEFT PAROTID"), two_rois.roi((SQUARE, 4), name=" Parotid_L "), RoiSpec("Empty")
    )
    assert sizes(two_rois, select=select) == {"Parotid_L": 36}
    assert offered == ["Parotid_L"]


def test_a_roi_without_an_item_in_the_contour_sequence_is_empty(two_rois: RtstructCase) -> None:
    two_rois.edit(lambda d: d.ROIContourSequence.pop())
    assert sizes(two_rois) == {"Parotid_L": 36}
    assert two_rois.read().changes == ("ROIs without a closed contour: 'PTV70'",)


def observe(number: int, side: tuple[str, str]) -> Dataset:
    """Return an observation that codes ROI `number` as the parotid gland of one side."""
    observation, code, modifier = Dataset(), Dataset(), Dataset()
    modifier.CodeValue, modifier.CodeMeaning = side
    modifier.CodingSchemeDesignator = "SCT"
    code.CodeValue, code.CodingSchemeDesignator = "45289007", "SCT"
    code.CodeMeaning = "Parotid gland"
    code.SegmentedPropertyTypeModifierCodeSequence = [modifier]
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.RTROIIdentificationCodeSequence = [code]
    return observation


LEFT, RIGHT = ("7771000", "Left"), ("24028007", "Right")


def test_the_side_of_a_name_without_one_is_taken_from_the_code(two_rois: RtstructCase) -> None:
    def change(dataset: Any) -> None:
        for roi in dataset.StructureSetROISequence:
            roi.ROIName = "Parotid"
        dataset.RTROIObservationsSequence = [observe(2, LEFT), observe(1, RIGHT)]

    two_rois.edit(change)
    assert sizes(two_rois) == {"Parotid Right": 36, "Parotid Left": 4}
    assert "ROI 1, 'Parotid', read as 'Parotid Right': its code has the side" in (
        two_rois.read().changes
    )


def test_a_name_and_a_code_of_two_sides_are_refused(two_rois: RtstructCase) -> None:
    two_rois.edit(lambda d: setattr(d, "RTROIObservationsSequence", [observe(1, RIGHT)]))
    with pytest.raises(LabelError, match="ROI 1 is called 'Parotid_L', but its code says right"):
        two_rois.read()


# --- frames of reference


def test_a_roi_without_a_frame_lies_in_the_only_one_of_the_file(two_rois: RtstructCase) -> None:
    def without_frame(dataset: Any) -> None:
        for roi in dataset.StructureSetROISequence:
            del roi.ReferencedFrameOfReferenceUID

    two_rois.edit(without_frame)
    assert sizes(two_rois) == {"Parotid_L": 36, "PTV70": 4}

    def only_at_the_top(dataset: Any) -> None:
        del dataset.ReferencedFrameOfReferenceSequence
        dataset.FrameOfReferenceUID = two_rois.headers[0].FrameOfReferenceUID

    def add_frame(dataset: Any) -> None:
        frame = Dataset()
        frame.FrameOfReferenceUID = "1.2.3.4"
        dataset.ReferencedFrameOfReferenceSequence.append(frame)

    two_rois.edit(add_frame)
    with pytest.raises(GeometryError, match="'Parotid_L' names no frame of reference, and the RTS"):
        two_rois.read()
    two_rois.edit(only_at_the_top)
    assert two_rois.read().changes == (
        "the RTSTRUCT names no series; it was accepted by its frame of reference",
    )


# --- images that contours refer to


@pytest.mark.parametrize(
    ("image", "note"),
    [
        (4, ()),
        (5, ()),
        (7, ("1 contours lie more than a slice off the image that they refer to",)),
        (None, ("1 contours refer to images that the CT does not have",)),
    ],
)
def test_the_image_of_a_contour_is_compared_with_its_coordinates(
    two_rois: RtstructCase, image: int | None, note: tuple[str, ...]
) -> None:
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = (
        "1.2.3" if image is None else two_rois.headers[image].SOPInstanceUID
    )
    two_rois.edit(
        lambda d: setattr(
            d.ROIContourSequence[0].ContourSequence[0], "ContourImageSequence", [reference]
        )
    )
    structures = two_rois.read()
    assert structures.changes == tuple(f"Parotid_L: {sentence}" for sentence in note)
    assert structures.masks["Parotid_L"][:, :, 4].sum() == 36


# --- coordinates


def put_text(text: bytes) -> Callable[[Any], None]:
    """Return a change that replaces the coordinates of the first contour by a text."""

    def change(dataset: Any) -> None:
        item = dataset.ROIContourSequence[0].ContourSequence[0]
        tag = item.data_element("ContourData").tag
        item._dict[tag] = RawDataElement(
            tag, "DS", len(text), text, 0, is_implicit_VR=False, is_little_endian=True
        )

    return change


# x = -10.25 + 1.5 * 2.5 = -6.5 .. 2.5; y = -35.5 + 2 * 3.5 = -28.5 .. -16.5; z = 120.75 + 3 * 4 = 132.75
LAST = r"2.5\-16.5\132.75\-6.5\-16.5\132.75"
TEXTS = {
    "a separator at the end": r"-6.5\-28.5\132.75\2.5\-28.5\132.75" + "\\" + LAST + "\\",
    "exponents": r"-6.5E0\-2.85e+01\1.3275E+2\25e-1\-28.5\132.75" + "\\" + LAST + " ",
    "signs, blanks, zeros": r"-6.50\-28.5\+132.75\ 2.5 \-28.5\132.750" + "\\" + LAST + "\0",
}


@pytest.mark.parametrize("form", TEXTS)
def test_every_form_of_decimal_strings_is_read(two_rois: RtstructCase, form: str) -> None:
    two_rois.edit(put_text(TEXTS[form].encode()))
    assert sizes(two_rois) == {"Parotid_L": 36, "PTV70": 4}
    assert two_rois.read().changes == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1\\2\\3\\\\4\\5\\6", "a value that is not a number"),
        (b"1,5\\2\\3", "a value that is not a number"),
        (b"1_5\\2\\3", "a value that is not a number"),
        (b"1\\2\\nan", "three finite numbers per point"),
        (b"1\\2\\3e9", r"has the coordinate 3e\+09 mm; at most 100000 mm"),
    ],
)
def test_coordinates_that_mean_nothing_are_refused(
    two_rois: RtstructCase, text: bytes, message: str
) -> None:
    two_rois.edit(put_text(text))
    with pytest.raises(LabelError, match=f"case7: a contour of 'Parotid_L' .*{message}"):
        two_rois.read()


def test_another_number_of_points_than_stated_is_told(two_rois: RtstructCase) -> None:
    def change(dataset: Any) -> None:
        dataset.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 7

    two_rois.edit(change)
    assert two_rois.read().changes == (
        "Parotid_L: 1 contours with another number of points than stated",
    )
