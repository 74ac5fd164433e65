"""Simulated clicks on training crops: the network learns what a click says by its own errors.

As in DeepEdit (Diaz-Pinto et al., MICCAI DALI 2022): the network contours a crop, a click is made in the middle
of an organ's largest error, and with the clicks the crop is contoured again. Here all organs share both
channels, so the clicks of one round lie on different organs, and there are two rounds at most.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lib.inference.click_channels import draw_click
from lib.prompts.refinement import Prompt
from lib.prompts.simulated_clicks import next_click
from lib.recipes.schema import Recipe

ROUNDS = 2
"""Largest number of rounds of a crop, each with one run of the network."""


def with_clicks(
    image: Tensor,
    label: Tensor,
    contoured: Tensor,
    recipe: Recipe,
    *,
    predict: Callable[[Tensor], Tensor],
    rng: np.random.Generator,
) -> Tensor:
    """Return a batch with clicks in its last two channels; crops without a drawn click stay as they are.

    Args:
        image: `(N, C, X, Y, Z)`, without clicks.
        label: `(N, X, Y, Z)`, class of each voxel.
        contoured: `(N, K)`, whether a class is contoured in the crop; other organs are unknown: no clicks.
        recipe: With clicks.
        predict: Returns the most likely class `(N, X, Y, Z)` of each voxel of a batch.
        rng: Decides number and organs of the clicks.
    """
    number = rng.integers(1, recipe.clicks.most + 1, len(image))
    left = np.where(rng.random(len(image)) < recipe.clicks.probability, number, 0)
    if not left.any():
        return image
    image = image.clone()
    for remaining_rounds in range(ROUNDS, 0, -1):
        chosen = np.flatnonzero(left)
        if not chosen.size:
            break
        found = predict(image[torch.from_numpy(chosen)]).numpy()
        for index, prediction in zip(chosen, found, strict=True):
            count = -(-int(left[index]) // remaining_rounds)
            organs = np.flatnonzero(contoured[index].numpy())
            clicks = _clicks(label[index].numpy(), prediction, organs[organs > 0], recipe, rng=rng)[
                :count
            ]
            channels = image[index, -2:].numpy()
            for click in clicks:
                draw_click(
                    channels,
                    [int(v) for v in click.voxels[0]],
                    is_add=click.is_add,
                    spacing_mm=recipe.spacing_mm,
                    radius_mm=recipe.clicks.radius_mm,
                )
            left[index] -= count
    return image


def _clicks(
    label: npt.NDArray[np.int64],
    prediction: npt.NDArray[np.int64],
    organs: npt.NDArray[np.intp],
    recipe: Recipe,
    *,
    rng: np.random.Generator,
) -> list[Prompt]:
    """Return a click for each organ with an error, in random order: larger errors tend to come first."""
    sizes = np.array([np.count_nonzero((label == v) != (prediction == v)) for v in organs])
    wrong = organs[sizes > 0]
    if not wrong.size:
        return []
    shares = sizes[sizes > 0] / sizes.sum()
    order = rng.choice(wrong, size=len(wrong), replace=False, p=shares)
    clicks = [next_click(label == v, prediction == v, recipe.spacing_mm) for v in order]
    return [click for click in clicks if click is not None]
