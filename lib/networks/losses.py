"""Focal and Dice loss over the organs that a case was contoured for."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.recipes.schema import Recipe

DICE_SMOOTH = 1.0
"""Constant in voxels, added to numerator and denominator of the Dice ratio: absent organs cost nothing."""


def merge_uncontoured(logits: Tensor, contoured: Tensor) -> Tensor:
    """Return log-probabilities in which organs that were not contoured count as background.

    If an organ was not contoured, a background voxel may belong to it, so that the loss must not penalise it
    there (Shi et al., Medical Image Analysis 2021, marginal loss).

    Args:
        logits: `(B, K, X, Y, Z)`.
        contoured: `(B, K)` bool; background is always contoured.

    Returns:
        `(B, K, X, Y, Z)`; channel 0 is the background together with every class that was not contoured; the
        channels of these classes are those of the plain softmax and must not be used.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    as_background = ~contoured
    as_background[:, 0] = True
    background = log_p.masked_fill(~as_background[:, :, None, None, None], -torch.inf)
    merged = torch.logsumexp(background, dim=1, keepdim=True)
    return torch.cat([merged, log_p[:, 1:]], dim=1)


class FocalDiceLoss(nn.Module):
    """`L = L_focal + lambda (1 - DSC)` (Chen et al. 2021, section 2.4, Eq. 2-4).

    The focal part is the mean over voxels of `-w_c (1 - p)^gamma log p`; the Dice part is the mean over the
    contoured organs of one minus the soft Dice of the whole batch. If several processes share a batch, `pool`
    sums over them: the Dice part is then equal in each, and the mean of their losses is the batch's loss.
    """

    class_weights: Tensor
    """`(K,)`, class weights of the recipe."""

    def __init__(self, recipe: Recipe, *, pool: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.pool = pool or (lambda tensor: tensor)
        self.fade_until = recipe.loss.fade_until
        self._strength = 1.0
        weights = torch.ones(recipe.classes)
        weights[0] = recipe.loss.background_weight
        for name, value in recipe.labels.items():
            weights[value] = recipe.loss.class_weights.get(name, 1.0)
        self.register_buffer("class_weights", weights)
        self.gamma = recipe.loss.focal_gamma
        self.dice_weight = recipe.loss.dice_weight

    def fade(self, share: float) -> None:
        """Set the class weights to those at `share` of the run, 0 to 1: `w ** (1 - share / fade_until)`.

        A weighted cross-entropy inflates the probabilities of classes with large weights, so that organs are
        predicted too often. Ending with equal weights corrects this.
        """
        self._strength = max(0.0, 1 - share / self.fade_until) if self.fade_until else 1.0

    def forward(self, logits: Tensor, label: Tensor, contoured: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: `(B, K, X, Y, Z)`.
            label: `(B, X, Y, Z)` int64; no voxel has an organ that was not contoured.
            contoured: `(B, K)` bool: which classes the case was contoured for.
        """
        log_p = merge_uncontoured(logits, contoured)
        log_pt = log_p.gather(1, label[:, None])[:, 0]
        weights = self.class_weights**self._strength
        focal = -weights[label] * (1 - log_pt.exp()).pow(self.gamma) * log_pt

        organs = contoured[:, 1:].float()
        p = log_p[:, 1:].exp() * organs[:, :, None, None, None]
        truth = functional.one_hot(label, log_p.shape[1])[..., 1:].movedim(-1, 1).to(p.dtype)
        axes = (0, 2, 3, 4)
        overlap = self.pool((p * truth).sum(axes))
        total = self.pool(p.sum(axes) + (truth * organs[:, :, None, None, None]).sum(axes))
        dice = (2 * overlap + DICE_SMOOTH) / (total + DICE_SMOOTH)
        counted = (self.pool(organs.sum(0)) > 0).to(dice.dtype)
        dice_loss = ((1 - dice) * counted).sum() / counted.sum().clamp(min=1)
        return focal.mean() + self.dice_weight * dice_loss
