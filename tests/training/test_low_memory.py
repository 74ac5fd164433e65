from dataclasses import replace

import pytest
import torch

from lib.errors import TrainingError
from lib.recipes.schema import OPENKBP, Recipe
from lib.training.low_memory import is_out_of_memory, reduce_memory

FOUR = replace(OPENKBP, schedule=replace(OPENKBP.schedule, batch_size=4))


def sizes(recipe: Recipe) -> tuple[int, tuple[int, int, int]]:
    return recipe.schedule.batch_size, recipe.crop_vox


def test_batches_shrink_first_then_crops() -> None:
    assert [sizes(reduce_memory(FOUR, times)[0]) for times in range(5)] == [
        (4, (48, 48, 48)),
        (2, (48, 48, 48)),
        (1, (48, 48, 48)),
        (1, (24, 24, 24)),
        (1, (16, 16, 16)),
    ]
    assert reduce_memory(FOUR, 1)[1] == "a batch is 2 instead of 4 crops"
    assert reduce_memory(FOUR, 3)[1] == "a crop is 24 x 24 x 24 instead of 48 x 48 x 48 voxels"


def test_memory_reduction_ends_with_an_error() -> None:
    with pytest.raises(TrainingError, match="not enough memory even for one crop of 16 x 16 x 16"):
        reduce_memory(FOUR, 5)


def test_out_of_memory_is_distinguished_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError("[Errno 12] Cannot allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
