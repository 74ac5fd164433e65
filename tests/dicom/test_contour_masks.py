"""Volumes of masks compared with closed formulas: an ellipsoid, cylinders and tubes."""

from collections.abc import Callable

import numpy as np
import pytest

from lib.dicom import contours
from lib.errors import GeometryError, LabelError
from tests.dicom.drawn_rois import (
    ELLIPSOID_ML,
    Planes,
    Points,
    cylinder,
    drawn,
    ellipse,
    ellipsoid,
    make_scan,
)

SLICES_MM = np.arange(15.0, 45.0, 3.0)
"""Ten slices, which stand for 30 mm."""


def cylinder_ml(radius_mm: float, length_mm: float) -> float:
    return float(np.pi * radius_mm**2 * length_mm / 1000)


# --- planes and slices


@pytest.mark.parametrize(
    ("plane_mm", "slice_mm"),
    [(0.1, 3), (0.3, 1), (0.3, 3), (0.3, 6), (0.5, 3), (1, 6), (1.2, 3), (1.2, 6), (2, 3), (3, 6)],
)
def test_planes_finer_than_the_slices_keep_the_volume(plane_mm: float, slice_mm: float) -> None:
    volume_ml, roi = drawn(ellipsoid(plane_mm), make_scan(slice_mm))
    assert volume_ml == pytest.approx(ELLIPSOID_ML, rel=0.025)
    assert not roi.doubts


@pytest.mark.parametrize(
    ("plane_mm", "offset_mm"),
    [
        (0.3, 0.0),
        (1.0, 0.75),
        *((3.0, offset) for offset in (0.0, 1.4, 1.45, 1.5, 1.55, 1.6, 1.65)),
    ],
)
def test_an_oblique_scan_with_coordinates_rounded_to_a_tenth_keeps_the_volume(
    plane_mm: float, offset_mm: float
) -> None:
    scan = make_scan(is_oblique=True)
    volume_ml, roi = drawn(ellipsoid(plane_mm, offset_mm), scan, decimals=1)
    assert volume_ml == pytest.approx(ELLIPSOID_ML, rel=0.025)
    assert not roi.doubts
    assert "slices between its contours have none" not in roi.notes


@pytest.mark.parametrize("offset_mm", [0.3, 1.0, 1.49, 1.5, 1.51, 2.6])
def test_planes_beside_the_slices_keep_the_volume(offset_mm: float) -> None:
    volume_ml, roi = drawn(ellipsoid(3.0, offset_mm), make_scan())
    assert volume_ml == pytest.approx(ELLIPSOID_ML, rel=0.025)
    assert set(roi.notes) == {"planes of contours between slices, counted to the nearer one"}


@pytest.mark.parametrize("plane_mm", [0.3, 1.0, 1.5])
def test_an_organ_ends_half_a_plane_distance_beyond_its_last_plane(plane_mm: float) -> None:
    # 24 mm on slices of 6 mm: four slices, wherever the flat ends lie between them.
    for start_mm in (12.2, 14.1, 16.3):
        planes = cylinder(np.arange(start_mm, start_mm + 24 - 1e-6, plane_mm), 9)
        volume_ml, _ = drawn(planes, make_scan(6.0))
        assert volume_ml == pytest.approx(cylinder_ml(9, 24), rel=0.03)


def test_pieces_that_are_drawn_on_different_planes_are_all_read() -> None:
    left, right = (cylinder(SLICES_MM + z, 8, (x, 28.4)) for z, x in ((0, 12.3), (1, 34.3)))
    volume_ml, roi = drawn(left + right, make_scan())
    assert volume_ml == pytest.approx(2 * cylinder_ml(8, 30), rel=0.03)
    assert roi.notes == {"planes of contours between slices, counted to the nearer one": 10}
    assert not roi.doubts


def test_a_branch_begins_where_its_own_planes_begin() -> None:
    trunk = cylinder(np.arange(15.0, 45.0, 0.3), 8, (12.3, 28.4))
    branch = cylinder(np.arange(31.6, 45.0, 0.3), 8, (34.3, 28.4))  # on slices 33, 36, 39, 42
    volume_ml, _ = drawn(trunk + branch, make_scan())
    assert volume_ml == pytest.approx(cylinder_ml(8, 30 + 12), rel=0.03)


# --- contours that are drawn twice


def _halved(corners: Points) -> Points:
    middles = (corners + np.roll(corners, -1, axis=0)) / 2
    return np.stack([corners, middles], axis=1).reshape(-1, 2)


REPEATS: dict[str, Callable[[Planes], Planes]] = {
    "equal": lambda planes: planes,
    "reversed from another point": lambda planes: [
        (z, np.roll(p, 17, axis=0)[::-1]) for z, p in planes
    ],
    "rounded": lambda planes: [(z, np.round(p, 1)) for z, p in planes],
    "shifted by 0.01 mm": lambda planes: [(z, p + 0.01) for z, p in planes],
    "shifted by half a voxel": lambda planes: [(z, p + 0.5) for z, p in planes],
    "0.02 mm along the normal": lambda planes: [
        (z + 0.02, p + np.array([0.004, 0])) for z, p in planes
    ],
    "0.3 mm along the normal": lambda planes: [(z + 0.3, p) for z, p in planes],
    "with more points": lambda planes: [(z, _halved(p)) for z, p in planes],
    "with fewer points": lambda planes: [(z, p[::5]) for z, p in planes],
    "smaller by 0.2 mm": lambda planes: [(z, 28 + (p - 28) * 0.98) for z, p in planes],
}


@pytest.mark.parametrize("how", REPEATS)
def test_contours_that_are_drawn_twice_count_once(how: str) -> None:
    planes = ellipsoid(3.0)
    volume_ml, roi = drawn(planes + REPEATS[how](planes), make_scan())
    assert volume_ml == pytest.approx(ELLIPSOID_ML, rel=0.025)
    assert sum(roi.notes.values()) == len(planes)
    assert all("left out" in note for note in roi.notes)


def test_ten_thousand_points_count_like_ninety() -> None:
    planes = [(z, ellipse(9, 9, corners=10_000)) for z in SLICES_MM]
    volume_ml, roi = drawn(planes + cylinder(SLICES_MM, 9), make_scan())
    assert volume_ml == pytest.approx(cylinder_ml(9, 30), rel=0.03)
    assert roi.notes == {"contours that repeat another one left out": 10}


def test_two_outlines_that_cross_widely_are_refused() -> None:
    planes = cylinder(SLICES_MM, 9)
    with pytest.raises(GeometryError, match=r"case7: slice 6: two contours of 'Organ' of .* cross"):
        drawn(planes + [(z, p + 3) for z, p in planes], make_scan())
    drawn(planes + [(z, p + 3) for z, p in planes], make_scan(), kind="CLOSEDPLANAR_XOR")


# --- holes


def test_rings_islands_and_pieces_have_the_area_of_their_parts() -> None:
    parts = [(20, 1), (14, -1), (6, 1)]  # radius; ring, hole, island
    planes: Planes = [plane for radius, _ in parts for plane in cylinder(SLICES_MM, radius)]
    expected_ml = sum(sign * cylinder_ml(radius, 30) for radius, sign in parts)
    for in_order in (planes, planes[::-1]):
        volume_ml, roi = drawn(in_order, make_scan())
        assert volume_ml == pytest.approx(expected_ml, rel=0.03)
        assert not roi.notes


@pytest.mark.parametrize(("wall_mm", "has_doubt"), [(5.0, False), (2.0, False), (1.2, True)])
def test_the_wall_of_a_tube_is_kept(wall_mm: float, *, has_doubt: bool) -> None:
    planes = cylinder(SLICES_MM, 15) + cylinder(SLICES_MM, 15 - wall_mm)
    volume_ml, roi = drawn(planes, make_scan())
    assert volume_ml == pytest.approx(cylinder_ml(15, 30) - cylinder_ml(15 - wall_mm, 30), rel=0.1)
    assert bool(roi.doubts) is has_doubt


def test_two_outlines_that_leave_less_than_a_voxel_are_refused_unless_they_are_holes() -> None:
    planes = cylinder(SLICES_MM, 15) + cylinder(SLICES_MM, 14.3)
    message = "'Organ' has two outlines on 10 of 10 planes, one inside the other, 0.7 voxels apart"
    with pytest.raises(GeometryError, match=message):
        drawn(planes, make_scan())
    volume_ml, _ = drawn(planes, make_scan(), kind="CLOSEDPLANAR_XOR")
    assert volume_ml == pytest.approx(cylinder_ml(15, 30) - cylinder_ml(14.3, 30), rel=0.2)


# --- the volume of the mask and that of the contours


def test_an_organ_on_every_second_slice_is_read_with_a_doubt() -> None:
    _, roi = drawn(cylinder(np.arange(6.0, 60.0, 6.0), 12), make_scan())
    # 9 slices of 3 mm, 9 planes of 6 mm
    (doubt,) = roi.doubts
    mask_ml, contours_ml = (float(word) for word in doubt.split() if word[0].isdigit())
    assert mask_ml == pytest.approx(cylinder_ml(12, 27), rel=0.03)
    assert contours_ml == pytest.approx(cylinder_ml(12, 54), rel=0.01)
    assert roi.notes == {"slices between its contours have none": 8}


def test_an_organ_on_every_third_slice_is_refused_with_both_volumes() -> None:
    with pytest.raises(GeometryError, match=r"'Organ' would have 8\.\d+ mL on the CT.* enclose 24"):
        drawn(cylinder(np.arange(6.0, 60.0, 9.0), 12), make_scan())


@pytest.mark.parametrize("radius_mm", [0.2, 0.4, 0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("centre_mm", [(24.0, 28.0), (24.3, 28.5)])
def test_thin_organs_are_never_refused(radius_mm: float, centre_mm: tuple[float, float]) -> None:
    volume_ml, _ = drawn(cylinder(SLICES_MM, radius_mm, centre_mm), make_scan())
    assert volume_ml >= 10 * 0.003  # a voxel on each slice


def test_an_organ_that_the_field_of_view_cuts_has_no_doubt() -> None:
    volume_ml, roi = drawn(cylinder(SLICES_MM, 12, (0.0, 28.0)), make_scan())
    assert volume_ml == pytest.approx(cylinder_ml(12, 30) / 2, rel=0.06)
    assert not roi.doubts
    assert roi.notes == {"contours reach beyond the slice and were cut at its rim": 10}


def test_far_too_many_contours_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contours, "MAX_CONTOURS", 10)
    drawn(cylinder(SLICES_MM, 9), make_scan())
    with pytest.raises(LabelError, match="'Organ' has more than 10 contours"):
        drawn(cylinder([*SLICES_MM, 48.0], 9), make_scan())
