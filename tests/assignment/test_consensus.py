import numpy as np
import pytest

from lib.assignment.consensus import Method, consensus, mean_agreement, observer_agreement
from lib.errors import ConfigError, GeometryError, LabelError
from lib.imaging.volumes import LabelVolume
from lib.recipes.schema import OPENKBP
from tests.phantoms import make_grid

LABELS = OPENKBP.labels
STEM, PAROTID = LABELS["Brainstem"], LABELS["Parotid_L"]
SHAPE = (24, 20, 16)
GRID = make_grid(SHAPE)
"""Voxels of 1.5 x 2 x 3 mm."""
both_methods = pytest.mark.parametrize("method", ["staple", "majority"])


def label(*blocks: tuple[int, int, int]) -> LabelVolume:
    """Return blocks of 10 x 6 voxels in y and z, each given by its value, and its start and stop in x."""
    array = np.zeros(SHAPE, np.uint8)
    for value, start, stop in blocks:
        array[start:stop, 5:15, 5:11] = value
    return LabelVolume(array, GRID, LABELS)


def merged(*labels: LabelVolume, method: Method) -> LabelVolume:
    return consensus(labels, method=method)


@both_methods
def test_readers_who_agree_have_what_they_drew(method: Method) -> None:
    drawn = label((STEM, 4, 10), (PAROTID, 14, 20))
    result = merged(drawn, drawn, drawn, method=method)
    np.testing.assert_array_equal(result.array, drawn.array)
    assert result.grid.is_same_as(GRID)
    assert result.labels == LABELS
    np.testing.assert_array_equal(merged(drawn, method=method).array, drawn.array)


@both_methods
def test_two_of_three_outvote_the_third(method: Method) -> None:
    result = merged(label((STEM, 4, 14)), label((STEM, 8, 18)), label((STEM, 4, 14)), method=method)
    np.testing.assert_array_equal(result.array, label((STEM, 4, 14)).array)


@both_methods
def test_an_organ_that_one_reader_drew_is_as_he_drew_it(method: Method) -> None:
    result = merged(label((STEM, 4, 10)), label((STEM, 4, 10), (PAROTID, 14, 20)), method=method)
    np.testing.assert_array_equal(result.array, label((STEM, 4, 10), (PAROTID, 14, 20)).array)


@both_methods
def test_an_organ_that_was_left_out_does_not_outvote_those_who_drew_it(method: Method) -> None:
    result = merged(label((STEM, 4, 10)), label(), label(), method=method)
    np.testing.assert_array_equal(result.array, label((STEM, 4, 10)).array)


@both_methods
def test_labels_without_organs_have_a_consensus_without_organs(method: Method) -> None:
    assert not merged(label(), label(), method=method).array.any()


@both_methods
def test_where_one_contour_lies_within_the_other_the_border_runs_halfway(method: Method) -> None:
    result = merged(label((STEM, 4, 14)), label((STEM, 6, 12)), method=method)
    np.testing.assert_array_equal(result.array, label((STEM, 5, 13)).array)


def test_majority_of_two_runs_halfway_between_them() -> None:
    result = merged(label((STEM, 4, 14)), label((STEM, 6, 16)), method="majority")
    np.testing.assert_array_equal(result.array, label((STEM, 5, 15)).array)


@both_methods
def test_halfway_is_measured_in_mm(method: Method) -> None:
    # At z = 10, `thick` is 1.5 mm (a voxel in x) from its border, and `thin` begins 3 mm (a voxel in z) away.
    thick, thin = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    thick[8:10, 5:15, 4:12] = STEM
    thin[8:10, 5:15, 4:10] = STEM
    result = merged(*(LabelVolume(a, GRID, LABELS) for a in (thick, thin)), method=method)
    np.testing.assert_array_equal(result.array, thin)


def test_staple_trusts_the_readers_who_agree_with_the_others() -> None:
    # Votes are 2 of 4 in [4, 8) and [14, 18); the two readers who agree exactly are more probably right.
    readers = [
        label((STEM, 4, 14)),
        label((STEM, 4, 14)),
        label((STEM, 8, 18)),
        label((STEM, 6, 20)),
    ]
    result = consensus(readers, method="staple").array == STEM
    assert result[8:14, 5:15, 5:11].all()
    assert not result[18:].any()
    assert not result[:4].any()


@pytest.mark.parametrize("edge", [0, 14])
@both_methods
def test_an_organ_at_the_edge_of_the_scan_is_like_any_other(method: Method, edge: int) -> None:
    result = merged(
        label((STEM, edge, edge + 10)), label((STEM, edge, edge + 10)), label(), method=method
    )
    np.testing.assert_array_equal(result.array, label((STEM, edge, edge + 10)).array)


def test_a_voxel_of_two_organs_goes_to_the_likelier_one() -> None:
    # Three readers drew the brainstem, two of them in [12, 14); there the only parotid contour begins.
    readers = [
        label((STEM, 4, 14)),
        label((STEM, 4, 14)),
        label((STEM, 4, 10)),
        label((PAROTID, 12, 18)),
    ]
    result = consensus(readers, method="majority").array
    np.testing.assert_array_equal(result, label((STEM, 4, 12), (PAROTID, 12, 18)).array)


@both_methods
def test_a_voxel_of_two_equally_likely_organs_goes_to_the_lower_value(method: Method) -> None:
    result = merged(label((STEM, 4, 14)), label((PAROTID, 10, 18)), method=method)
    np.testing.assert_array_equal(result.array, label((PAROTID, 10, 18), (STEM, 4, 14)).array)


@both_methods
def test_the_order_of_the_readers_does_not_matter(method: Method) -> None:
    readers = [label((STEM, 4, 14)), label((STEM, 7, 16)), label((STEM, 5, 12), (PAROTID, 15, 20))]
    forward, reverse = (consensus(order, method=method) for order in (readers, readers[::-1]))
    np.testing.assert_array_equal(forward.array, reverse.array)


def test_what_cannot_be_merged_is_refused() -> None:
    shifted = GRID.affine_ras
    shifted[0, 3] += 30.0
    elsewhere = LabelVolume(label().array, type(GRID).from_affine(SHAPE, shifted), LABELS)
    with pytest.raises(GeometryError, match="case_7: the label lies on"):
        consensus([label(), elsewhere], image_id="case_7")
    with pytest.raises(GeometryError, match="ada and bob: the label"):
        observer_agreement([label(), elsewhere], ["ada", "bob"])
    with pytest.raises(LabelError, match="case_7: no labels for a consensus"):
        consensus([], image_id="case_7")
    with pytest.raises(
        ConfigError, match="'mean': unknown consensus method; expected one of staple, maj"
    ):
        consensus([label()], method="mean")  # type: ignore[arg-type]


def test_agreement_is_the_dice_of_each_two_readers() -> None:
    readers = [label((STEM, 4, 14), (PAROTID, 16, 20)), label((STEM, 6, 16)), label((STEM, 4, 14))]
    result = observer_agreement(readers, ["ada", "bob", "ida"])
    # Eight of ten slices are in both: 2 * 8 / 20.
    assert result == {
        ("ada", "bob"): {"Brainstem": 0.8, "Parotid_L": None},
        ("ada", "ida"): {"Brainstem": 1.0, "Parotid_L": None},
        ("bob", "ida"): {"Brainstem": 0.8},
    }
    assert mean_agreement(result) == {"Brainstem": pytest.approx((0.8 + 1.0 + 0.8) / 3)}


def test_contours_that_never_meet_agree_by_zero_and_empty_labels_by_nothing() -> None:
    result = observer_agreement([label((STEM, 2, 8)), label((STEM, 12, 18))], ["ada", "bob"])
    assert result == {("ada", "bob"): {"Brainstem": 0.0}}
    assert observer_agreement([label(), label()], ["ada", "bob"]) == {("ada", "bob"): {}}
    assert observer_agreement([label()], ["ada"]) == {}
    assert mean_agreement({("ada", "bob"): {"Brainstem": None}}) == {}
