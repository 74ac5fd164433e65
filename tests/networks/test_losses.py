import math
from dataclasses import replace

import pytest
import torch

from lib.networks.losses import FocalDiceLoss, merge_uncontoured
from lib.recipes.schema import OPENKBP, LossConfig

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


def test_merged_probabilities_sum_to_one_over_the_known_classes() -> None:
    contoured = torch.tensor([[True, True, False, True, False, False, True, True]])
    merged = merge_uncontoured(torch.randn(1, 8, 2, 2, 2), contoured).exp()
    total = merged[:, contoured[0]].sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total))


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
