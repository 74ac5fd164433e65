import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lib.networks.losses import FocalDiceLoss
from lib.recipes.schema import OPENKBP, LossConfig, Recipe

ALL = torch.ones(1, 8, dtype=torch.bool)
PLAIN = replace(OPENKBP, loss=LossConfig(focal_gamma=0.0, dice_weight=0.0, background_weight=1.0))


def test_focal_without_focusing_is_cross_entropy() -> None:
    logits = torch.randn(2, 8, 3, 4, 5)
    label = torch.randint(0, 8, (2, 3, 4, 5))
    expected = torch.nn.functional.cross_entropy(logits, label)
    torch.testing.assert_close(FocalDiceLoss(PLAIN)(logits, label, ALL.expand(2, 8)), expected)


def test_focal_of_equally_likely_classes_by_hand() -> None:
    # p = 1/8 everywhere: -(1 - 1/8)^2 ln(1/8), times the weight of the class.
    recipe = replace(OPENKBP, loss=LossConfig(dice_weight=0.0, class_weights={"Larynx": 3.0}))
    label = torch.full((1, 2, 2, 2), 6)
    loss = FocalDiceLoss(recipe)(torch.zeros(1, 8, 2, 2, 2), label, ALL)
    assert float(loss) == pytest.approx(3 * (7 / 8) ** 2 * math.log(8))


def test_dice_of_a_perfect_and_of_a_missed_organ_by_hand() -> None:
    recipe = replace(OPENKBP, loss=LossConfig(focal_gamma=0.0))
    label = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    label[:, :2] = 1  # 32 voxels of brainstem
    sure = torch.nn.functional.one_hot(label, 8).movedim(-1, 1).float() * 100
    assert float(FocalDiceLoss(recipe)(sure, label, ALL)) == pytest.approx(0, abs=1e-4)
    only = torch.zeros(1, 8, dtype=torch.bool)
    only[:, :2] = True
    recipe = replace(
        OPENKBP, loss=LossConfig(background_weight=0.0, class_weights={"Brainstem": 0.0})
    )
    background = torch.zeros(1, 8, 4, 4, 4)
    background[:, 0] = 100
    # No overlap: 1 - (0 + 1) / (0 + 32 + 1).
    assert float(FocalDiceLoss(recipe)(background, label, only)) == pytest.approx(1 - 1 / 33)


def test_an_organ_that_was_not_contoured_does_not_change_the_loss() -> None:
    contoured = ALL.clone()
    contoured[:, 5] = False
    label = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    label[:, :2] = 1
    logits = torch.nn.functional.one_hot(label, 8).movedim(-1, 1).float() * 50
    predicted = logits.clone()
    # Esophagus is predicted where the label is background.
    predicted[:, 0, 3], predicted[:, 5, 3] = 0.0, 50.0
    loss = FocalDiceLoss(OPENKBP)
    assert float(loss(predicted, label, contoured)) == pytest.approx(
        float(loss(logits, label, contoured)), abs=1e-5
    )
    assert float(loss(predicted, label, ALL)) > 0.1


def test_an_organ_that_was_contoured_is_not_hidden_by_one_that_was_not() -> None:
    contoured = ALL.clone()
    contoured[:, 5] = False
    label = torch.ones(1, 4, 4, 4, dtype=torch.long)
    wrong = torch.zeros(1, 8, 4, 4, 4)
    wrong[:, 5] = 50
    assert float(FocalDiceLoss(OPENKBP)(wrong, label, contoured)) > 1


def test_loss_and_gradient_are_finite_where_the_network_is_certain_and_wrong() -> None:
    logits = torch.zeros(1, 8, 2, 2, 2)
    logits[:, 3] = 1e4
    logits.requires_grad_()
    loss = FocalDiceLoss(OPENKBP)(logits, torch.ones(1, 2, 2, 2, dtype=torch.long), ALL)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_class_weights_fade_to_equal_ones() -> None:
    weights = LossConfig(
        dice_weight=0.0, background_weight=0.5, class_weights={"Larynx": 4.0}, fade_until=0.5
    )
    loss = FocalDiceLoss(replace(OPENKBP, loss=weights))
    logits, background = torch.zeros(1, 8, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.long)
    larynx = torch.full((1, 2, 2, 2), 6)
    one = (7 / 8) ** 2 * math.log(8)
    for share, of_larynx, of_background in (
        (0, 4, 0.5),
        (0.25, 2, 0.5**0.5),
        (0.5, 1, 1),
        (1, 1, 1),
    ):
        loss.fade(share)
        assert float(loss(logits, larynx, ALL)) == pytest.approx(of_larynx * one)
        assert float(loss(logits, background, ALL)) == pytest.approx(of_background * one)


def test_class_weights_are_constant_without_fading() -> None:
    loss = FocalDiceLoss(replace(OPENKBP, loss=LossConfig(class_weights={"Larynx": 4.0})))
    logits, larynx = torch.zeros(1, 8, 2, 2, 2), torch.full((1, 2, 2, 2), 6)
    at_first = float(loss(logits, larynx, ALL))
    loss.fade(1.0)
    assert float(loss(logits, larynx, ALL)) == at_first


def plain_loss(recipe: Recipe, logits: Tensor, label: Tensor, contoured: Tensor) -> Tensor:
    """Return the loss from the equations, one voxel after another; autograd differentiates it."""
    weights = {v: recipe.loss.class_weights.get(o, 1.0) for o, v in recipe.labels.items()}
    weights[0] = recipe.loss.background_weight
    focal = logits.new_zeros(())
    overlap, total = logits.new_zeros(recipe.classes), logits.new_zeros(recipe.classes)
    for b, one in enumerate(logits):
        unknown = [0, *(~contoured[b]).nonzero()[:, 0].tolist()]
        for z, y in zip(one.flatten(1).T, label[b].flatten().tolist(), strict=True):
            log_p = functional.log_softmax(z, 0)
            log_q = log_p[unknown].logsumexp(0) if y == 0 else log_p[y]
            focal = focal - weights[y] * (1 - log_q.exp()) ** recipe.loss.focal_gamma * log_q
            for organ in range(1, recipe.classes):
                if contoured[b, organ]:
                    total[organ] = total[organ] + log_p[organ].exp() + (y == organ)
                    if y == organ:
                        overlap[organ] = overlap[organ] + log_p[organ].exp()
    organs = [organ for organ in range(1, recipe.classes) if contoured[:, organ].any()]
    dice = sum(1 - (2 * overlap[organ] + 1) / (total[organ] + 1) for organ in organs) / len(organs)
    return focal / label.numel() + recipe.loss.dice_weight * dice


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("missing", [[], [(0, 3), (0, 5), (1, 5), (1, 2)]])
def test_loss_and_gradient_equal_those_of_the_equations(
    gamma: float, missing: list[tuple[int, int]]
) -> None:
    weights = LossConfig(focal_gamma=gamma, dice_weight=0.7, class_weights={"Larynx": 3.0})
    recipe = replace(OPENKBP, loss=weights)
    torch.manual_seed(1)
    contoured, label = torch.ones(2, 8, dtype=torch.bool), torch.randint(0, 8, (2, 3, 3, 4))
    for b, organ in missing:
        contoured[b, organ] = False
        label[b][label[b] == organ] = 0
    logits = (3 * torch.randn(2, 8, 3, 3, 4)).to(memory_format=torch.channels_last_3d)
    expected = logits.double().requires_grad_()
    of_equations = plain_loss(recipe, expected, label, contoured)
    torch.autograd.backward(1.5 * of_equations)
    logits.requires_grad_()
    loss = FocalDiceLoss(recipe)(logits, label, contoured)
    torch.autograd.backward(1.5 * loss)
    assert float(loss.detach()) == pytest.approx(float(of_equations.detach()), rel=1e-5)
    assert logits.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(logits.grad, expected.grad.float(), rtol=1e-4, atol=1e-7)
    assert logits.grad.is_contiguous(memory_format=torch.channels_last_3d)


def test_background_that_may_hold_an_uncontoured_organ_has_a_gradient_however_wrong() -> None:
    contoured = ALL.clone()
    contoured[:, 5] = False
    logits = torch.zeros(1, 8, 1, 1, 1)
    logits[:, 2] = 40.0
    logits.requires_grad_()
    recipe = replace(OPENKBP, loss=LossConfig(focal_gamma=0.0, dice_weight=0.0))
    label = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    torch.autograd.backward(FocalDiceLoss(recipe)(logits, label, contoured))
    assert logits.grad is not None
    # The weight of background is 0.5; background and class 5 have equal logits and share it.
    expected = [-0.25, 0, 0.5, 0, 0, -0.25, 0, 0]
    assert logits.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)
