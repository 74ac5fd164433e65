"""Conversion of contours to voxels.

Unless a test states otherwise, the phantom's grid has 20 x 16 x 12 voxels of 1.5 x 2 x 3 mm, with the first
voxel at LPS (-10.25, -35.5, 120.75).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from lib.errors import GeometryError, LabelError
from lib.imaging.quantities import MaskArray
from tests.dicom.rtstruct_case import HOLE, SQUARE, RtstructCase
from tests.phantoms import make_ct, make_oblique_ct, stored_as
from tests.rtstruct_files import RoiSpec, box_corners

KEYHOLE = [(2.5, 3.5), (8.5, 3.5), (8.5, 9.5), (2.5, 9.5), (2.5, 6.0),
           (4.5, 6.0), (4.5, 7.5), (6.5, 7.5), (6.5, 5.5), (4.5, 5.5), (4.5, 6.0), (2.5, 6.0)]  # fmt: skip
"""`SQUARE` and `HOLE` in one contour: the channel follows y = 6, through the centres of voxels 3 and 4."""


@pytest.fixture
def rtstruct_case(tmp_path: Path) -> RtstructCase:
    return RtstructCase(make_ct(), tmp_path)


def expected(shape: Sequence[int], *boxes: tuple[slice, slice, slice]) -> MaskArray:
    mask = np.zeros(shape, np.bool_)
    for box in boxes:
        mask[box] ^= True
    return mask


# --- the area inside a contour


def test_a_square_in_mm_marks_the_voxels_worked_out_by_hand(rtstruct_case: RtstructCase) -> None:
    # x = -10.25 + 1.5 i from -6.5 (i = 2.5) to 2.5 (i = 8.5); y = -35.5 + 2 j from -28.5 (j = 3.5) to -16.5
    # (j = 9.5); z = 120.75 + 3 * 4 = 132.75
    square = [
        (-6.5, -28.5, 132.75),
        (2.5, -28.5, 132.75),
        (2.5, -16.5, 132.75),
        (-6.5, -16.5, 132.75),
    ]
    rtstruct_case.write(RoiSpec("Organ", [square]))
    structures = rtstruct_case.read()
    mask = structures.masks["Organ"]
    assert mask.shape == (20, 16, 12)
    assert mask.sum() == 36
    assert mask[3:9, 4:10, 4].all()
    # 9 mm x 12 mm x 3 mm
    assert mask.sum() * rtstruct_case.grid.voxel_ml * 1000 == pytest.approx(9 * 12 * 3)
    assert structures.changes == ()
    assert structures.names == ("Organ",)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_second_contour_inside_the_first_is_a_hole(
    rtstruct_case: RtstructCase, direction: int
) -> None:
    hole = HOLE[::direction]
    for contours in ([(SQUARE, 4), (hole, 4)], [(hole, 4), (SQUARE, 4)]):
        mask = rtstruct_case.mask(*contours)
        assert mask.sum() == 36 - 4
        assert not mask[5:7, 6:8, 4].any()


def test_a_keyhole_contour_leaves_its_hole_and_marks_its_channel(
    rtstruct_case: RtstructCase,
) -> None:
    keyhole = rtstruct_case.mask((KEYHOLE, 4))
    assert keyhole.sum() == 36 - 4
    np.testing.assert_array_equal(keyhole, rtstruct_case.mask((SQUARE, 4), (HOLE, 4)))
    assert keyhole[3:5, 6, 4].all()


def test_an_island_in_a_hole_is_marked(rtstruct_case: RtstructCase) -> None:
    outer, hole, island = (
        box_corners(0.5, 0.5, 12.5, 12.5),  # 144
        box_corners(2.5, 2.5, 10.5, 10.5),  # 64
        box_corners(4.5, 4.5, 7.5, 7.5),  # 9
    )
    assert rtstruct_case.mask((outer, 2), (hole, 2), (island, 2)).sum() == 144 - 64 + 9


def test_two_islands_of_a_slice_are_both_marked(rtstruct_case: RtstructCase) -> None:
    other = box_corners(11.5, 3.5, 13.5, 6.5)  # 2 x 3
    mask = rtstruct_case.mask((SQUARE, 4), (other, 4), (SQUARE, 5))
    assert mask.sum() == 36 + 6 + 36
    assert mask[12:14, 4:7, 4].all()
    assert mask[:, :, 5].sum() == 36


def test_a_triangle_marks_the_centres_inside_it(rtstruct_case: RtstructCase) -> None:
    # x > 1.5, y > 1.5 and (x - 1.5) + (y - 1.5) < 5: with i = x - 2, j = y - 2: i + j < 4: 4 + 3 + 2 + 1
    assert rtstruct_case.mask(([(1.5, 1.5), (6.5, 1.5), (1.5, 6.5)], 4)).sum() == 10


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("direction", [1, -1])
def test_a_centre_on_an_edge_is_inside_at_the_low_side_only(
    rtstruct_case: RtstructCase, turn: int, direction: int
) -> None:
    corners = list(box_corners(3, 4, 6, 8))
    corners = corners[turn:] + corners[:turn]
    left = rtstruct_case.mask((corners[::direction], 4))
    np.testing.assert_array_equal(left, expected(left.shape, np.s_[3:6, 4:8, 4:5]))
    right = rtstruct_case.mask((box_corners(6, 4, 9, 8), 4))
    assert not (left & right).any()
    assert (left | right).sum() == 6 * 4


def test_the_overlap_of_crossing_contours_is_left_out_and_noted(
    rtstruct_case: RtstructCase,
) -> None:
    other = box_corners(6.5, 3.5, 10.5, 9.5)  # 4 x 6, of which 2 x 6 lie in SQUARE
    assert rtstruct_case.mask((SQUARE, 4), (other, 4)).sum() == 36 + 24 - 2 * 12
    assert rtstruct_case.changes((SQUARE, 4), (other, 4)) == (
        "Organ: 12 voxels enclosed by two crossing contours left out",
    )
    assert rtstruct_case.changes((HOLE, 4), (other, 3), (SQUARE, 4)) == ()


def test_a_repeated_contour_counts_once(rtstruct_case: RtstructCase) -> None:
    assert rtstruct_case.mask((SQUARE, 4), (SQUARE[2:] + SQUARE[:2], 4)).sum() == 36  # type: ignore[operator]
    assert "1 contours that repeat another one left out" in rtstruct_case.read().changes[0]


# --- grids


@pytest.mark.parametrize("flips", [(0, 0, 1), (1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_reversed_axes_and_slices_keep_the_organ_in_its_place(
    tmp_path: Path, flips: Sequence[int]
) -> None:
    upright = RtstructCase(make_ct(), tmp_path / "upright")
    turned = RtstructCase(
        stored_as(make_ct(), (0, 1, 2), [bool(f) for f in flips]), tmp_path / "turned"
    )
    contours = [(SQUARE, 4.0), (HOLE, 4.0), (HOLE, 9.0)]
    roi = upright.roi(*contours)
    turned.write(RoiSpec("Organ", roi.contours[::-1]))
    mask = turned.read().masks["Organ"]
    assert mask.sum() == 32 + 4
    np.testing.assert_allclose(
        centres_ras(mask, turned), centres_ras(upright.mask(*contours), upright), atol=1e-6
    )


def centres_ras(mask: MaskArray, rtstruct_case: RtstructCase) -> Any:
    """Return the RAS coordinates of the marked voxels, sorted."""
    indices = np.argwhere(mask)
    world = indices @ rtstruct_case.grid.affine_ras[:3, :3].T + rtstruct_case.grid.affine_ras[:3, 3]
    return np.array(sorted(map(tuple, np.round(world, 6))))


@pytest.mark.parametrize("decimals", [1, 2, 6])
def test_an_oblique_scan_is_drawn_in_its_own_slices(tmp_path: Path, decimals: int) -> None:
    rtstruct_case = RtstructCase(make_oblique_ct(), tmp_path)
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4), (HOLE, 4), (SQUARE, 5)), decimals=decimals)
    mask = rtstruct_case.read().masks["Organ"]
    assert mask.sum() == 32 + 36
    assert mask[3:9, 4:10, 5].all()


def test_contours_of_an_upright_scan_do_not_fit_an_oblique_one(tmp_path: Path) -> None:
    rtstruct_case = RtstructCase(make_oblique_ct(), tmp_path)
    rtstruct_case.write(
        RoiSpec("Organ", [[(-5, -30, 130), (10, -30, 130), (10, -10, 130), (-5, -10, 130)]])
    )
    with pytest.raises(GeometryError, match=r"case7: a contour of 'Organ' is not parallel"):
        rtstruct_case.read()


# --- small and stray contours


def test_a_contour_smaller_than_a_voxel_marks_the_voxel_of_its_centroid(
    rtstruct_case: RtstructCase,
) -> None:
    tiny = box_corners(6.1, 7.1, 6.4, 7.3)  # between the centres of voxels 6 and 7
    mask = rtstruct_case.mask((tiny, 4))
    assert mask.sum() == 1
    assert mask[6, 7, 4]
    tiny = box_corners(6.6, 7.1, 6.9, 7.7)  # its centroid (6.75, 7.4) is nearer to voxel 7
    assert rtstruct_case.mask((tiny, 4))[7, 7, 4]
    assert rtstruct_case.changes((tiny, 4)) == (
        "Organ: 1 contours smaller than a voxel, which mark one each",
    )


def test_a_hole_smaller_than_a_voxel_removes_no_voxel(rtstruct_case: RtstructCase) -> None:
    assert rtstruct_case.mask((SQUARE, 4), (box_corners(6.1, 7.1, 6.4, 7.3), 4)).sum() == 36


@pytest.mark.parametrize(
    ("z_vox", "slice_vox"), [(4.3, 4), (4.7, 5), (4.5, 4), (5.5, 5), (-0.5, 0), (11.5, 11)]
)
def test_a_contour_between_slices_belongs_to_the_nearer_one(
    rtstruct_case: RtstructCase, z_vox: float, slice_vox: int
) -> None:
    mask = rtstruct_case.mask((SQUARE, z_vox))
    assert mask.sum() == 36
    assert mask[:, :, slice_vox].sum() == 36


def test_contours_halfway_between_slices_are_each_assigned_their_own_slice(
    rtstruct_case: RtstructCase,
) -> None:
    mask = rtstruct_case.mask(*[(SQUARE, z + 0.5) for z in range(6)])
    assert mask.sum(axis=(0, 1)).tolist() == [36] * 6 + [0] * 6


def test_of_two_planes_the_one_nearest_to_a_slice_is_used(rtstruct_case: RtstructCase) -> None:
    # The organ ends 0.4 of a slice above slice 5: XOR of both planes would leave a ring.
    mask = rtstruct_case.mask((SQUARE, 4), (SQUARE, 5), (HOLE, 5.4))
    assert mask.sum(axis=(0, 1))[[4, 5, 6]].tolist() == [36, 36, 0]
    assert "1 contours left out: another plane lies nearer to their slice" in " ".join(
        rtstruct_case.read().changes
    )


def test_an_organ_without_contours_on_some_slices_is_noted(rtstruct_case: RtstructCase) -> None:
    assert rtstruct_case.changes((SQUARE, 2), (SQUARE, 5)) == (
        "Organ: 2 slices between its contours have none",
    )


@pytest.mark.parametrize(
    ("z_vox", "message"), [(-0.8, "2.4 mm beyond the first"), (12.5, "4.5 mm beyond the last")]
)
def test_a_contour_beyond_the_scan_is_refused_with_its_distance(
    rtstruct_case: RtstructCase, z_vox: float, message: str
) -> None:
    rtstruct_case.write(rtstruct_case.roi((SQUARE, z_vox)))
    with pytest.raises(GeometryError, match=f"{message} slice; half the slice distance, 1.5 mm"):
        rtstruct_case.read()


def test_a_contour_outside_the_slices_is_refused_and_one_over_the_rim_is_cut(
    rtstruct_case: RtstructCase,
) -> None:
    over = box_corners(-3.5, 3.5, 1.5, 9.5)  # columns 0 and 1 are left
    assert rtstruct_case.mask((over, 4)).sum() == 2 * 6
    assert "cut at its rim" in rtstruct_case.read().changes[0]
    rtstruct_case.write(rtstruct_case.roi((box_corners(22, 3, 25, 6), 4)))
    with pytest.raises(GeometryError, match="lies beside the CT's slices"):
        rtstruct_case.read()


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"])
def test_points_and_open_contours_are_skipped_and_noted(
    rtstruct_case: RtstructCase, kind: str
) -> None:
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4), kind=kind))
    structures = rtstruct_case.read()
    assert not structures.masks
    assert structures.changes == (
        f"ROIs without a closed contour: 'Organ' (only 1 of type {kind})",
    )


def test_contours_without_area_are_dropped_and_noted(rtstruct_case: RtstructCase) -> None:
    two = [(2.0, 2.0), (5.0, 2.0), (2.0, 2.0)]
    line = [(2.0, 2.0), (5.0, 2.0), (8.0, 2.0)]
    mask = rtstruct_case.mask((SQUARE, 4), (two, 4), (line, 5))
    assert mask.sum() == 36
    assert rtstruct_case.read().changes == (
        "Organ: 1 contours of fewer than 3 points left out",
        "Organ: 1 contours without area left out",
    )


def test_a_roi_without_contours_is_noted(rtstruct_case: RtstructCase) -> None:
    rtstruct_case.write(RoiSpec("Empty"), rtstruct_case.roi((SQUARE, 4)))
    structures = rtstruct_case.read()
    assert structures.names == ("Empty", "Organ")
    assert set(structures.masks) == {"Organ"}
    assert structures.changes == ("ROIs without a closed contour: 'Empty'",)


# --- references between RTSTRUCT and CT


def test_another_frame_of_reference_is_refused(rtstruct_case: RtstructCase) -> None:
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4)), frame="1.2.3.4")
    with pytest.raises(
        GeometryError, match=r"case7: 'Organ' lies in the frame of reference 1\.2\.3\.4"
    ):
        rtstruct_case.read()


def test_another_series_is_refused(rtstruct_case: RtstructCase) -> None:
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4)), series="1.2.3.4")
    with pytest.raises(GeometryError, match=r"case7: the RTSTRUCT was drawn on series 1\.2\.3\.4"):
        rtstruct_case.read()


def test_without_a_series_the_frame_of_reference_decides(rtstruct_case: RtstructCase) -> None:
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4)), series="")
    assert rtstruct_case.read().changes == (
        "the RTSTRUCT names no series; it was accepted by its frame of reference",
    )
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4)), series="", frame="")
    with pytest.raises(GeometryError, match="names neither a series nor a frame of reference"):
        rtstruct_case.read()


def test_only_wanted_rois_are_read(rtstruct_case: RtstructCase) -> None:
    outside = RoiSpec("Couch", rtstruct_case.roi((SQUARE, 40)).contours)
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4)), outside)
    assert set(rtstruct_case.read(select=lambda names: ["Organ"]).masks) == {"Organ"}
    with pytest.raises(GeometryError, match=r"'Couch' lies 87\.0 mm beyond the last slice"):
        rtstruct_case.read()


def test_two_rois_of_one_name_are_refused_where_they_are_wanted(
    rtstruct_case: RtstructCase,
) -> None:
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4)), rtstruct_case.roi((HOLE, 4)))
    with pytest.raises(LabelError, match="case7: two ROIs are called 'Organ'"):
        rtstruct_case.read()
    assert rtstruct_case.read(select=lambda names: []).names == ("Organ", "Organ")


def put_numbers(numbers: list[str]) -> Callable[[Any], None]:
    def change(dataset: Any) -> None:
        dataset.ROIContourSequence[0].ContourSequence[0].ContourData = numbers

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put_numbers(["1", "2", "3", "4"]), "has 4 numbers; three finite numbers per point"),
        (lambda d: setattr(d, "Modality", "RTPLAN"), "modality is RTPLAN; RTSTRUCT expected"),
        (lambda d: delattr(d.StructureSetROISequence[0], "ROINumber"), "the RTSTRUCT is damaged"),
    ],
)
def test_a_damaged_file_is_refused(
    rtstruct_case: RtstructCase, change: Callable[[Any], None], message: str
) -> None:
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4)))
    dataset = pydicom.dcmread(rtstruct_case.path)
    change(dataset)
    dataset.save_as(rtstruct_case.path)
    with pytest.raises(LabelError, match=f"case7: .*{message}"):
        rtstruct_case.read()
    rtstruct_case.path.write_bytes(b"no DICOM")
    with pytest.raises(LabelError, match="case7: the RTSTRUCT is damaged"):
        rtstruct_case.read()


def test_values_that_are_not_numbers_are_refused(rtstruct_case: RtstructCase) -> None:
    rtstruct_case.write(rtstruct_case.roi((SQUARE, 4)))
    content = rtstruct_case.path.read_bytes()
    assert content.count(b"132.750") == 4
    rtstruct_case.path.write_bytes(content.replace(b"132.750", b"13x.750", 1))
    with pytest.raises(
        LabelError, match="case7: a contour of 'Organ' contains a value that is not a number"
    ):
        rtstruct_case.read()
