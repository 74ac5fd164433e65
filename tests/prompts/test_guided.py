from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib.backends.eager import EagerBackend
from lib.imaging.quantities import SpacingMm
from lib.imaging.volumes import CtVolume
from lib.inference.single_pass import contour
from lib.models.registry import Model
from lib.prompts.organ_prompts import OrganPrompts
from lib.prompts.refinement import Prompt
from lib.prompts.service import RunKeeper, box_of, click_guided, corrected
from lib.recipes.schema import OPENKBP, ClickConfig, Recipe
from tests.phantoms import ORIENTATIONS, SPACING_MM, make_ct, make_grid, stored_as


def recipe(spacing_mm: SpacingMm = SPACING_MM) -> Recipe:
    return replace(
        OPENKBP,
        spacing_mm=spacing_mm,
        spacing_tolerance=0.0,
        hu_windows=((-1000.0, 1000.0),),
        crop_vox=(16, 16, 12),
        clicks=ClickConfig(probability=0.5, radius_mm=6.0),
    )


class BelievesClicks(nn.Module):
    """A network that finds a parotid (4) at clicks to add, and mandible (7) in bone without a click to remove.

    At a click means: its channel is above 0, which is within 1.18 standard deviations.
    """

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.full((image.shape[0], 8, *image.shape[2:]), -20.0)
        logits[:, 0] = 0.0
        logits[:, 7] = torch.where((image[:, 0] > 0.4) & (image[:, 2] < 0), 5.0, -20.0)
        logits[:, 4] = torch.where(image[:, 1] > 0, 6.0, -20.0)
        return logits


def answer(
    ct: CtVolume, used: Recipe, organ: str, value: int, prompt: Prompt
) -> "np.ndarray[tuple[int, int, int], np.dtype[np.bool_]]":
    """Return the organ on the whole CT after one prompt."""
    model = Model("clicks", BelievesClicks(), used, {})
    backend = EagerBackend(model.network, "cpu")
    keeper = RunKeeper(ct)
    run = keeper.run(contour(ct, model, backend=backend, on_probabilities=keeper.take))
    wanted = OrganPrompts(organ=organ, prompts=[prompt])
    box = box_of(wanted, ct, image_id="case")
    guided = click_guided(run, wanted, model, box, backend)
    mask = run.label.array == value
    mask[box], _ = corrected(run, wanted, value, box, guided=guided)
    return np.asarray(mask)


@pytest.mark.parametrize("number", [0, 5, 22, 47])
def test_the_network_sees_the_click_where_it_is_in_any_orientation(number: int) -> None:
    upright = make_ct(make_grid((40, 36, 24)))
    offsets = np.indices(upright.array_hu.shape) - np.array([6, 7, 10]).reshape(3, 1, 1, 1)
    distance_mm = np.sqrt(((offsets * np.array(SPACING_MM).reshape(3, 1, 1, 1)) ** 2).sum(axis=0))
    order, flips = ORIENTATIONS[number]
    ct = stored_as(upright, order, flips)
    stored_mm = stored_as(replace(upright, array_hu=distance_mm), order, flips).array_hu
    voxel = np.argwhere(stored_mm == 0)
    found = answer(ct, recipe(), "Parotid_L", 4, Prompt(voxel, is_add=True))
    # Gaussian above 0.5: within sqrt(2 ln 2) = 1.177 standard deviations of 6 mm.
    assert found[stored_mm < 7.0].all()
    assert not found[stored_mm > 12.0].any()


def test_a_click_to_remove_goes_into_the_other_channel() -> None:
    ct = make_ct(make_grid((40, 36, 24)))
    found = answer(ct, recipe(), "Bone_Mandible", 7, Prompt(np.array([[14, 6, 5]]), is_add=False))
    bone = ct.array_hu > 400
    assert bone[14, 6, 5]
    assert not found[14, 5:8, 5].any()
    # 6 mm are 3 voxels of 2 mm: this end of the bone is farther than 7 mm from the click.
    assert found[13:16, 8, 2].all() or found[13:16, 4, 2].all()


def test_voxels_of_another_size_get_the_click_at_the_same_place() -> None:
    ct = make_ct(make_grid((40, 36, 24)))
    found = answer(
        ct, recipe((3.0, 3.0, 3.0)), "Parotid_L", 4, Prompt(np.array([[8, 7, 6]]), is_add=True)
    )
    centre = np.argwhere(found).mean(axis=0)
    # A click is drawn at the nearest voxel of 3 mm: up to 1.5 mm away; voxels of the CT measure up to 3 mm.
    np.testing.assert_allclose(centre * SPACING_MM, np.array([8, 7, 6]) * SPACING_MM, atol=2.0)
