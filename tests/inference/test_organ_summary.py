from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.organ_summary import NOT_FOUND, OrganSummary, UncertainSlice, organ_summaries
from lib.inference.preprocessing import Pipeline
from lib.inference.uncertainty import ModelUncertainty
from lib.recipes.schema import OPENKBP
from tests.phantoms import MARK_VOX, SPACING_MM, make_ct, make_grid, rotation, stored_as

RECIPE = replace(OPENKBP, spacing_mm=SPACING_MM, spacing_tolerance=0.0)
UPRIGHT = ((0, 1, 2), (False, False, False))
BOX = (slice(13, 16), slice(4, 9), slice(2, 8))
"""The organ: 3 x 5 x 6 voxels of 1.5 x 2 x 3 mm; the mark is one of them."""
DOUBTFUL_Z = 5
CENTRE_LPS_MM = (10.75, -23.5, 134.25)
"""(-10.25 + 14 * 1.5, -35.5 + 6 * 2, 120.75 + 4.5 * 3)"""


def summary(
    organ: str,
    ct: CtVolume | None = None,
    *,
    stored: tuple[Sequence[int], Sequence[bool]] = UPRIGHT,
    box: tuple[slice, slice, slice] = BOX,
) -> OrganSummary:
    """Return the summary of one organ: `box`, with an entropy of 0.4 on one slice and 0.1 on the others."""
    ct = ct or make_ct()
    label = np.zeros(ct.array_hu.shape, np.uint8)
    label[box] = OPENKBP.labels[organ]
    entropy = np.full(label.shape, 0.1, np.float32)
    entropy[:, :, DOUBTFUL_Z] = 0.4
    order, flips = stored
    turned = stored_as(ct, order, flips)
    label, entropy = (
        stored_as(replace(ct, array_hu=array), order, flips).array_hu for array in (label, entropy)
    )
    prepared = Pipeline(RECIPE).prepare(turned)
    frame = prepared.frame
    uncertainty = ModelUncertainty(
        frame.turn(entropy)[prepared.box].astype(np.float32),
        frame.turn(label)[prepared.box].astype(np.uint8),
        frame,
        prepared.box,
    )
    volume = LabelVolume(label, turned.grid, OPENKBP.labels)
    found = organ_summaries(turned, volume, uncertainty)
    assert set(found) == set(OPENKBP.labels)
    others = [value for name, value in found.items() if name != organ]
    assert others == [OrganSummary(reason=NOT_FOUND)] * len(others)
    return found[organ]


def test_size_position_and_uncertainty_of_an_organ() -> None:
    found = summary("Bone_Mandible")
    assert found.volume_ml == pytest.approx(90 * 9e-3)
    assert found.centre_mm == CENTRE_LPS_MM
    assert found.uncertainty == pytest.approx((5 * 0.1 + 0.4) / 6)
    assert found.uncertain_slice == UncertainSlice(
        axis=2, index=DOUBTFUL_Z, position_mm=(10.75, -23.5, 135.75)
    )
    assert (found.is_cut, found.doubts, found.reason) == (False, (), "")


@pytest.mark.parametrize(
    ("order", "flips", "axis", "index"),
    [
        ((0, 1, 2), (True, True, True), 2, 11 - DOUBTFUL_Z),
        ((2, 0, 1), (False, False, True), 0, DOUBTFUL_Z),
        ((1, 2, 0), (False, True, False), 1, 11 - DOUBTFUL_Z),
    ],
)
def test_the_slice_is_counted_along_the_cts_own_axis(
    order: tuple[int, ...], flips: tuple[bool, ...], axis: int, index: int
) -> None:
    found = summary("Bone_Mandible", stored=(order, flips))
    assert found.centre_mm == CENTRE_LPS_MM
    assert found.uncertain_slice == UncertainSlice(
        axis=axis, index=index, position_mm=(10.75, -23.5, 135.75)
    )


def test_positions_on_an_oblique_ct_follow_its_axes() -> None:
    directions = rotation(about_x_deg=10, about_z_deg=20)
    found = summary("Bone_Mandible", make_ct(make_grid(directions=directions)))
    expected = np.array((-10.25, -35.5, 120.75)) + directions @ (14 * 1.5, 6 * 2.0, 4.5 * 3)
    np.testing.assert_allclose(found.centre_mm or (), expected, atol=0.006)


def test_an_organ_at_the_edge_of_the_scan_is_cut() -> None:
    x, y, _ = BOX
    assert summary("Bone_Mandible", box=(x, y, slice(0, 6))).is_cut
    assert summary("Bone_Mandible", box=(x, y, slice(8, 12))).is_cut
    assert not summary("Bone_Mandible", box=(x, y, slice(1, 11))).is_cut


def test_what_is_implausible_is_told_for_the_organ_that_it_concerns() -> None:
    assert summary("Brainstem").doubts == (
        "Brainstem lies on bone for 100% of its volume; is it shifted?",
    )


def test_the_uncertainty_of_the_cord_is_not_given() -> None:
    found = summary("SpinalCord")
    assert found.uncertainty is None
    assert found.uncertain_slice is not None
    assert found.volume_ml is not None
    assert "no better than chance" in found.reason


def test_an_organ_that_the_model_is_sure_of_has_no_uncertain_slice() -> None:
    ct = make_ct()
    label = np.zeros(ct.array_hu.shape, np.uint8)
    label[MARK_VOX] = 7
    prepared = Pipeline(RECIPE).prepare(ct)
    likely = prepared.frame.turn(label)[prepared.box].astype(np.uint8)
    uncertainty = ModelUncertainty(
        np.zeros(likely.shape, np.float32), likely, prepared.frame, prepared.box
    )
    found = organ_summaries(ct, LabelVolume(label, ct.grid, OPENKBP.labels), uncertainty)
    assert found["Bone_Mandible"].uncertainty == 0
    assert found["Bone_Mandible"].uncertain_slice is None


def test_slices_of_another_thickness_than_the_networks() -> None:
    """The network's slices are 6 mm: its slice 2 holds the slices 4 and 5 of the CT."""
    ct = make_ct()
    pipeline = Pipeline(replace(RECIPE, spacing_mm=(1.5, 2.0, 6.0)))
    prepared = pipeline.prepare(ct)
    label = np.zeros(ct.array_hu.shape, np.uint8)
    label[BOX] = 7
    likely = pipeline.prepare_label(label, prepared)
    row = 2 - prepared.box[2].start
    entropy = np.full(likely.shape, 0.1, np.float32)
    entropy[:, :, row] = 0.4
    uncertainty = ModelUncertainty(entropy, likely, prepared.frame, prepared.box)
    found = organ_summaries(ct, LabelVolume(label, ct.grid, OPENKBP.labels), uncertainty)
    where = found["Bone_Mandible"].uncertain_slice
    assert where is not None
    assert where.index in (4, 5)


def test_mean_entropy_over_the_most_likely_voxels_of_an_organ() -> None:
    probabilities = torch.zeros((3, 1, 1, 3))
    probabilities[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    probabilities[:, 0, 0, 1] = torch.tensor([0.2, 0.8, 0.0])
    probabilities[:, 0, 0, 2] = torch.tensor([1.0, 0.0, 0.0])
    prepared = Pipeline(RECIPE).prepare(make_ct())
    uncertainty = ModelUncertainty.of(probabilities, prepared.frame, prepared.box)
    second = -(0.2 * np.log(0.2) + 0.8 * np.log(0.8)) / np.log(3)
    assert uncertainty.mean_of(1) == pytest.approx((0 + second) / 2, abs=1e-6)
    assert uncertainty.mean_of(2) is None
