from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.preprocessing import Pipeline
from lib.inference.resampling import Box
from lib.prompts.kept_runs import KeptRun, KeptRuns, QuantisedProbabilities
from lib.recipes.schema import OPENKBP, Recipe
from tests.phantoms import ORIENTATIONS, SPACING_MM, make_ct, make_oblique_ct, stored_as

SAME_VOXELS = replace(OPENKBP, spacing_mm=SPACING_MM, spacing_tolerance=0.0)
LARGER_VOXELS = replace(OPENKBP, spacing_mm=(2.0, 2.5, 4.0), spacing_tolerance=0.0)


def softmax_of(ct: CtVolume, recipe: Recipe) -> tuple[QuantisedProbabilities, torch.Tensor]:
    """Return probabilities in which bone is mandible (7) with 0.8, and all else background."""
    prepared = Pipeline(recipe).prepare(ct)
    softmax = torch.zeros(8, *prepared.hu.shape)
    softmax[7] = torch.from_numpy(np.where(prepared.hu > 400, np.float32(0.8), np.float32(0)))
    softmax[0] = 1 - softmax[7]
    return QuantisedProbabilities.of(prepared, softmax), softmax


def whole(ct: CtVolume) -> Box:
    x, y, z = ct.array_hu.shape
    return slice(0, x), slice(0, y), slice(0, z)


@pytest.mark.parametrize("number", [0, 7, 13, 30, 47])
def test_certainty_is_on_the_scans_voxels_in_any_orientation(number: int) -> None:
    ct = stored_as(make_ct(), *ORIENTATIONS[number])
    kept, _ = softmax_of(ct, SAME_VOXELS)
    certainty = kept.certainty(7, whole(ct))
    # 0.8 against a background of 0.2.
    np.testing.assert_allclose(certainty, np.where(ct.array_hu > 400, 0.8, 0.0), atol=0.005)


@pytest.mark.parametrize("ct", [make_ct(), make_oblique_ct()], ids=["upright", "oblique"])
@pytest.mark.parametrize("recipe", [SAME_VOXELS, LARGER_VOXELS], ids=["same", "larger"])
def test_a_box_gets_the_same_values_as_the_whole_ct(ct: CtVolume, recipe: Recipe) -> None:
    kept, _ = softmax_of(ct, recipe)
    box = (slice(9, 18), slice(3, 11), slice(1, 9))
    np.testing.assert_allclose(kept.certainty(7, box), kept.certainty(7, whole(ct))[box], atol=1e-5)


def test_an_organ_is_certain_against_its_strongest_rival() -> None:
    ct = make_ct()
    prepared = Pipeline(SAME_VOXELS).prepare(ct)
    softmax = torch.zeros(8, *prepared.hu.shape)
    softmax[0], softmax[1], softmax[2] = 0.2, 0.5, 0.3
    kept = QuantisedProbabilities.of(prepared, softmax)
    assert kept.certainty(1, whole(ct)).mean() == pytest.approx(0.5 / 0.8, abs=0.01)
    assert kept.certainty(2, whole(ct)).mean() == pytest.approx(0.3 / 0.8, abs=0.01)
    assert kept.certainty(3, whole(ct)).max() == 0


def test_only_the_part_with_a_possible_organ_is_kept() -> None:
    kept, softmax = softmax_of(make_ct(), SAME_VOXELS)
    # The bone of the phantom has 3 x 5 x 6 voxels; its brightest voxel lies in it.
    assert kept.values.shape == (7, 3, 5, 6)
    softmax[0], softmax[1:] = 1.0, 0.0
    empty = QuantisedProbabilities.of(Pipeline(SAME_VOXELS).prepare(make_ct()), softmax)
    assert empty.values.size == 0
    assert not empty.certainty(7, whole(make_ct())).any()


def run_of(*, voxels: int = 0) -> KeptRun:
    ct = make_ct()
    kept, _ = softmax_of(ct, SAME_VOXELS)
    label = LabelVolume(np.zeros(ct.array_hu.shape, np.uint8), ct.grid, SAME_VOXELS.labels)
    if voxels:
        ct = replace(ct, array_hu=np.zeros(voxels, np.int16))
    return KeptRun(ct, whole(make_ct()), kept, label)


def test_the_runs_used_last_are_kept() -> None:
    size = run_of(voxels=1000).size_bytes
    runs = KeptRuns(limit_bytes=2 * size)
    first, second, third = (run_of(voxels=1000) for _ in range(3))
    runs.put("first", first)
    runs.put("second", second)
    assert runs.get("first") is first
    runs.put("third", third)
    assert [runs.get(key) for key in ("first", "second", "third")] == [first, None, third]


def test_a_run_larger_than_the_limit_is_not_kept() -> None:
    runs = KeptRuns(limit_bytes=1000)
    runs.put("large", run_of(voxels=10_000))
    assert runs.get("large") is None


def test_a_part_does_not_replace_the_whole() -> None:
    runs = KeptRuns()
    run = run_of()
    part = replace(run, label=replace(run.label, array=run.label.array[:5]))
    runs.put("key", part)
    assert runs.get("key") is part
    runs.put("key", run)
    runs.put("key", part)
    assert runs.get("key") is run
