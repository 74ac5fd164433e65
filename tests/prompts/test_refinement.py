import numpy as np
import pytest

from lib.imaging.quantities import FloatArray, MaskArray, SpacingMm
from lib.prompts.refinement import REACH_MM, Prompt, prompt_box, refine

SPACING_MM: SpacingMm = (1.0, 2.0, 3.0)
SHAPE = (60, 40, 24)


def click(*voxel: int, is_add: bool = True) -> Prompt:
    return Prompt(np.array([voxel]), is_add)


def distance_mm(*voxel: int) -> FloatArray:
    """Return the distance of each voxel from one, in mm."""
    offsets = np.indices(SHAPE) - np.array(voxel).reshape(3, 1, 1, 1)
    return np.asarray(
        np.sqrt(((offsets * np.array(SPACING_MM).reshape(3, 1, 1, 1)) ** 2).sum(axis=0))
    )


def sphere(radius_mm: float) -> MaskArray:
    return np.asarray(distance_mm(30, 20, 12) <= radius_mm)


def refined(
    mask: MaskArray,
    *prompts: Prompt,
    probability: FloatArray | None = None,
    array_hu: FloatArray | None = None,
) -> MaskArray:
    return refine(
        mask,
        np.where(mask, 0.9, 0.1) if probability is None else probability,
        np.zeros(SHAPE, np.float32) if array_hu is None else array_hu,
        prompts,
        spacing_mm=SPACING_MM,
    )


def test_without_prompts_the_contour_stays_even_where_the_probabilities_contradict_it() -> None:
    mask = sphere(12)
    np.testing.assert_array_equal(refined(mask, probability=np.full(SHAPE, 0.3)), mask)


def test_an_added_click_and_its_surroundings_are_in_the_organ() -> None:
    mask = sphere(8)
    result = refined(mask, click(46, 20, 12))
    # The click is 16 mm from the centre, so 8 mm from the last voxel of the organ.
    assert result[distance_mm(46, 20, 12) <= 0.9 * 8].all()
    assert (result & mask).sum() == mask.sum()


def test_a_removed_click_and_its_surroundings_are_not_in_the_organ() -> None:
    mask = sphere(12)
    result = refined(mask, click(38, 20, 12, is_add=False))
    assert not result[distance_mm(38, 20, 12) <= 3].any()
    assert not (result & ~mask).any()


def test_nothing_changes_outside_the_box() -> None:
    mask = sphere(8)
    prompt = click(45, 20, 12)
    inside = np.zeros(SHAPE, bool)
    inside[prompt_box(prompt.voxels, SHAPE, SPACING_MM)] = True
    changed = refined(mask, prompt) != mask
    assert changed.any()
    assert not (changed & ~inside).any()


def test_the_box_reaches_as_far_as_a_prompt_can_and_ends_with_the_scan() -> None:
    voxels = np.array([[10, 100, 100], [12, 100, 100]])
    box = prompt_box(voxels, (200, 200, 200), (1.0, 2.0, 3.0))
    # 25 mm are 25 voxels of 1 mm, 13 of 2 mm and 9 of 3 mm.
    assert REACH_MM == 25
    assert box == (slice(0, 38), slice(87, 114), slice(91, 110))


def test_a_click_where_the_contour_agrees_changes_nothing() -> None:
    mask = sphere(8)
    np.testing.assert_array_equal(refined(mask, click(30, 20, 12)), mask)


def test_an_edge_in_the_ct_stops_the_change() -> None:
    mask = sphere(6)
    array_hu = np.zeros(SHAPE, np.float32)
    array_hu[46:] = 400
    with_edge = refined(mask, click(42, 20, 12), array_hu=array_hu)
    without = refined(mask, click(42, 20, 12))
    beyond = np.zeros(SHAPE, bool)
    # The ball about the click, whose radius is 6 mm, is added whatever the CT shows.
    beyond[46:] = distance_mm(42, 20, 12)[46:] > 6
    assert (without & beyond).sum() > 2 * (with_edge & beyond).sum()


def test_a_change_reaches_farther_where_the_model_doubts() -> None:
    mask = sphere(6)
    probability = np.where(mask, 0.9, 0.02)
    doubtful = np.where(mask, 0.9, 0.4)
    certain = refined(mask, click(42, 20, 12), probability=probability)
    uncertain = refined(mask, click(42, 20, 12), probability=doubtful)
    assert uncertain.sum() > certain.sum()
    assert (uncertain & certain).sum() == certain.sum()


@pytest.mark.parametrize("spacing_mm", [(1.0, 2.0, 3.0), (0.4, 0.5, 0.8)])
def test_many_prompts_are_all_respected_and_the_result_is_repeatable(
    spacing_mm: SpacingMm,
) -> None:
    rng = np.random.default_rng(0)
    voxels = np.stack([rng.integers(0, size, 10) for size in SHAPE], axis=1)
    voxels = np.unique(voxels, axis=0)
    prompts = [Prompt(voxel[None], bool(rng.integers(2))) for voxel in voxels]
    array_hu = rng.normal(0, 50, SHAPE).astype(np.float32)
    mask = sphere(10)

    def once() -> MaskArray:
        return refine(mask, np.where(mask, 0.8, 0.2), array_hu, prompts, spacing_mm=spacing_mm)

    result = once()
    assert [bool(result[tuple(p.voxels[0])]) for p in prompts] == [p.is_add for p in prompts]
    np.testing.assert_array_equal(once(), result)


def test_a_later_prompt_wins_at_the_same_voxel() -> None:
    mask = sphere(8)
    result = refined(mask, click(40, 20, 12), click(40, 20, 12, is_add=False))
    assert not result[40, 20, 12]


def test_a_click_starts_an_organ_that_is_missing() -> None:
    result = refined(np.zeros(SHAPE, bool), click(30, 20, 12))
    assert result[sphere(4)].all()
    assert not result[distance_mm(30, 20, 12) > 2.5 * 5].any()


def test_all_voxels_of_a_scribble_are_respected() -> None:
    mask = sphere(8)
    line = np.array([[x, 20, 12] for x in range(36, 50)])
    result = refined(mask, Prompt(line, is_add=True))
    assert result[tuple(line.T)].all()
    # The median distance of the voxels outside is 6 mm; a change reaches 2.5 times as far.
    near = np.min([distance_mm(*voxel) for voxel in line[3:]], axis=0) <= 15.01
    assert not (result & ~mask & ~near).any()


def test_arguments_are_not_changed() -> None:
    mask, probability = sphere(8), np.where(sphere(8), 0.9, 0.1)
    before = mask.copy(), probability.copy()
    refined(mask, click(45, 20, 12), probability=probability)
    np.testing.assert_array_equal(mask, before[0])
    np.testing.assert_array_equal(probability, before[1])
