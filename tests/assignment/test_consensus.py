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


def consensus_of(*labels: LabelVolume, method: Method) -> LabelVolume:
    return consensus(labels, method=method)


@both_methods
def test_equal_readings_are_their_own_consensus(method: Method) -> None:
    reading = label((STEM, 4, 10), (PAROTID, 14, 20))
    result = consensus_of(reading, reading, reading, method=method)
    np.testing.assert_array_equal(result.array, reading.array)
    assert result.grid.is_same_as(GRID)
    assert result.labels == LABELS
    np.testing.assert_array_equal(consensus_of(reading, method=method).array, reading.array)


@both_methods
def test_two_of_three_readers_decide(method: Method) -> None:
    result = consensus_of(
        label((STEM, 4, 14)), label((STEM, 8, 18)), label((STEM, 4, 14)), method=method
    )
    np.testing.assert_array_equal(result.array, label((STEM, 4, 14)).array)


@both_methods
def test_an_organ_of_a_single_reading_is_taken_unchanged(method: Method) -> None:
    result = consensus_of(
        label((STEM, 4, 10)), label((STEM, 4, 10), (PAROTID, 14, 20)), method=method
    )
    np.testing.assert_array_equal(result.array, label((STEM, 4, 10), (PAROTID, 14, 20)).array)


@both_methods
def test_a_reading_without_an_organ_does_not_count_against_the_organ(method: Method) -> None:
    result = consensus_of(label((STEM, 4, 10)), label(), label(), method=method)
    np.testing.assert_array_equal(result.array, label((STEM, 4, 10)).array)


@both_methods
def test_empty_labels_have_an_empty_consensus(method: Method) -> None:
    assert not consensus_of(label(), label(), method=method).array.any()


@both_methods
def test_the_consensus_of_two_nested_contours_is_halfway_between_them(method: Method) -> None:
    result = consensus_of(label((STEM, 4, 14)), label((STEM, 6, 12)), method=method)
    np.testing.assert_array_equal(result.array, label((STEM, 5, 13)).array)


def test_the_majority_of_two_shifted_contours_is_halfway_between_them() -> None:
    result = consensus_of(label((STEM, 4, 14)), label((STEM, 6, 16)), method="majority")
    np.testing.assert_array_equal(result.array, label((STEM, 5, 15)).array)


@both_methods
def test_distances_between_contours_are_measured_in_mm(method: Method) -> None:
    # At z = 10, `thick` is 1.5 mm (a voxel in x) from its border, and `thin` begins 3 mm (a voxel in z) away.
    thick, thin = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    thick[8:10, 5:15, 4:12] = STEM
    thin[8:10, 5:15, 4:10] = STEM
    result = consensus_of(*(LabelVolume(a, GRID, LABELS) for a in (thick, thin)), method=method)
    np.testing.assert_array_equal(result.array, thin)


def test_staple_gives_readers_who_agree_with_others_more_weight() -> None:
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
def test_an_organ_at_the_edge_of_the_scan_has_a_consensus(method: Method, edge: int) -> None:
    result = consensus_of(
        label((STEM, edge, edge + 10)), label((STEM, edge, edge + 10)), label(), method=method
    )
    np.testing.assert_array_equal(result.array, label((STEM, edge, edge + 10)).array)


def test_a_voxel_of_two_organs_is_assigned_to_the_more_probable_one() -> None:
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
def test_a_voxel_of_two_equally_probable_organs_is_assigned_to_the_lower_value(
    method: Method,
) -> None:
    result = consensus_of(label((STEM, 4, 14)), label((PAROTID, 10, 18)), method=method)
    np.testing.assert_array_equal(result.array, label((PAROTID, 10, 18), (STEM, 4, 14)).array)


@both_methods
def test_the_order_of_the_readers_does_not_matter(method: Method) -> None:
    readers = [label((STEM, 4, 14)), label((STEM, 7, 16)), label((STEM, 5, 12), (PAROTID, 15, 20))]
    forward, reverse = (consensus(order, method=method) for order in (readers, readers[::-1]))
    np.testing.assert_array_equal(forward.array, reverse.array)


def test_labels_on_two_grids_no_labels_and_unknown_methods_are_refused() -> None:
    shifted = GRID.affine_ras
    shifted[0, 3] += 30.0
    on_another_grid = LabelVolume(label().array, type(GRID).from_affine(SHAPE, shifted), LABELS)
    with pytest.raises(GeometryError, match="case_7: the label lies on"):
        consensus([label(), on_another_grid], image_id="case_7")
    with pytest.raises(GeometryError, match="ada and bob: the label"):
        observer_agreement([label(), on_another_grid], ["ada", "bob"])
    with pytest.raises(LabelError, match="case_7: no labels for a consensus"):
        consensus([], image_id="case_7")
    with pytest.raises(
        ConfigError, match="'mean': unknown consensus method; expected one of staple, maj"
    ):
        consensus([label()], method="mean")  # type: ignore[arg-type]


def test_observer_agreement_is_the_dice_of_each_pair_of_readers() -> None:
    readers = [label((STEM, 4, 14), (PAROTID, 16, 20)), label((STEM, 6, 16)), label((STEM, 4, 14))]
    result = observer_agreement(readers, ["ada", "bob", "ida"])
    # Eight of ten slices are in both: 2 * 8 / 20.
    assert result == {
        ("ada", "bob"): {"Brainstem": 0.8, "Parotid_L": None},
        ("ada", "ida"): {"Brainstem": 1.0, "Parotid_L": None},
        ("bob", "ida"): {"Brainstem": 0.8},
    }
    assert mean_agreement(result) == {"Brainstem": pytest.approx((0.8 + 1.0 + 0.8) / 3)}


def test_separate_contours_have_dice_0_and_empty_labels_have_none() -> None:
    result = observer_agreement([label((STEM, 2, 8)), label((STEM, 12, 18))], ["ada", "bob"])
    assert result == {("ada", "bob"): {"Brainstem": 0.0}}
    assert observer_agreement([label(), label()], ["ada", "bob"]) == {("ada", "bob"): {}}
    assert observer_agreement([label()], ["ada"]) == {}
    assert mean_agreement({("ada", "bob"): {"Brainstem": None}}) == {}
