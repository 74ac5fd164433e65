"""Focal and Dice loss over the organs that a case was contoured for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lib.recipes.schema import Recipe

DICE_SMOOTH = 1.0
"""Constant in voxels, added to numerator and denominator of the Dice ratio: absent organs cost nothing."""
PART_VOX = 1 << 14
"""Number of voxels whose gradient is computed at once on a CPU: few enough to stay in its cache."""
_SMALLEST = 1e-30
"""Smallest divisor of the gradient, for voxels where a probability is 0: the quotient must be finite."""


class FocalDiceLoss(nn.Module):
    """`L = L_focal + lambda (1 - DSC)` (Chen et al. 2021, section 2.4, Eq. 2-4).

    The focal part is the mean over voxels of `-w_c (1 - p)^gamma log p`; the Dice part is the mean over the
    contoured organs of one minus the soft Dice of the whole batch. If several processes share a batch, `pool`
    sums over them: the Dice part is then equal in each, and the mean of their losses is the batch's loss.

    If an organ was not contoured, a background voxel may belong to it, so that the loss must not penalise it
    there: its probability counts as background (Shi et al., Medical Image Analysis 2021, marginal loss).
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
            contoured: `(B, K)` bool: which classes the case was contoured for; background always is.
        """
        terms = _Terms(
            weights=self.class_weights**self._strength,
            gamma=self.gamma,
            dice_weight=self.dice_weight,
            pool=self.pool,
        )
        loss: Tensor = _FocalDice.apply(logits, label, contoured, terms)
        return loss


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """Numbers of the loss at one step, and the sum over the processes."""

    weights: Tensor
    gamma: float
    dice_weight: float
    pool: Callable[[Tensor], Tensor]


class _FocalDice(torch.autograd.Function):
    """The loss and its gradient in closed form.

    With `p` the softmax, `q` the probability of a voxel's own class `y` (for background: of all classes that
    count as background), `a = dL/dlog q` of the focal part, and `g_c = A_c + B_c [c = y]` the derivative of the
    Dice part by `p_c`:

        dL/dz_c = a ([c counts as y] p_c / q - p_c) + p_c (g_c - sum_k p_k g_k)

    Autograd computes the same from a dozen volumes of `K` channels; here are two, and each is passed through
    a few times instead of forty.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, label: Tensor, contoured: Tensor, terms: _Terms
    ) -> Tensor:
        batch, classes = logits.shape[:2]
        p = torch.softmax(logits.float().contiguous().view(batch, classes, -1), dim=1)
        y = label.reshape(batch, -1)
        is_background = y == 0
        as_background = (~contoured).to(p.dtype)
        as_background[:, 0] = 1.0
        in_background = torch.bmm(as_background[:, None], p)[:, 0]
        own = p.gather(1, y[:, None])[:, 0]
        q = torch.where(is_background, in_background, own).clamp(max=1.0)
        # Where the softmax is 0 in float32, the logarithm comes from the logits.
        log_q = _log_probability(logits, y, as_background, q)
        weight = terms.weights[y]
        other = 1 - q
        focused = other.pow(terms.gamma)
        focal = -(weight * focused * log_q).mean()
        slope = -weight * focused
        if terms.gamma:
            slope += (
                weight * terms.gamma * other.clamp(min=_SMALLEST).pow(terms.gamma - 1) * q * log_q
            )
        slope /= y.numel()

        dice_loss, flat, at_label = _dice(p, own, y, contoured, terms)
        ctx.save_for_backward(p, y, q, own, slope, as_background, flat, at_label)
        ctx.like = logits.detach()[:0], logits.shape
        ctx.memory_format = (
            torch.channels_last_3d
            if logits.is_contiguous(memory_format=torch.channels_last_3d)
            else torch.contiguous_format
        )
        return focal + terms.dice_weight * dice_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        p, y, q, own, slope, as_background, flat, at_label = ctx.saved_tensors
        like, shape = ctx.like
        at_own = own * at_label.gather(1, y)
        common = slope + torch.bmm(flat[:, None], p)[:, 0] + at_own
        at_own += slope
        result = torch.empty_like(p)
        for b in range(len(p)):
            added, ratio = at_own[b], None
            if bool(as_background[b, 1:].any()):
                # The gradient of a background voxel is shared by all classes that count as background.
                is_background = y[b] == 0
                ratio = torch.where(is_background, slope[b] / q[b].clamp(min=_SMALLEST), 0.0)
                added = added.masked_fill(is_background, 0.0)
            for part in _parts(p):
                out = torch.sub(flat[b][:, None], common[b, None, part], out=result[b, :, part])
                if ratio is not None:
                    out.addcmul_(as_background[b][:, None], ratio[None, part])
                out *= p[b, :, part]
                out.scatter_add_(0, y[b, None, part], added[None, part])
        result *= grad
        gradient = like.new_empty(shape).contiguous(memory_format=ctx.memory_format)
        gradient.copy_(result.view(shape))
        return gradient, None, None, None


def _parts(p: Tensor) -> Iterator[slice]:
    """Yield slices of the voxels of `(B, K, V)`: small ones on a CPU, one on a GPU."""
    size = PART_VOX if p.device.type == "cpu" else p.shape[2]
    for first in range(0, p.shape[2], size):
        yield slice(first, first + size)


def _log_probability(logits: Tensor, y: Tensor, as_background: Tensor, q: Tensor) -> Tensor:
    """Return `log q`, also where `q` is too small for float32."""
    log_q = q.log()
    is_tiny = q < torch.finfo(torch.float32).tiny
    if bool(is_tiny.any()):
        b, voxel = is_tiny.nonzero(as_tuple=True)
        z = logits.detach().flatten(2)[b, :, voxel].float()
        own = torch.zeros_like(z, dtype=torch.bool).scatter_(1, y[b, voxel][:, None], True)  # noqa: FBT003 - torch's signature
        own |= (y[b, voxel] == 0)[:, None] & as_background[b].bool()
        log_q[b, voxel] = z.masked_fill(~own, -torch.inf).logsumexp(1) - z.logsumexp(1)
    return log_q


def _dice(
    p: Tensor, own: Tensor, y: Tensor, contoured: Tensor, terms: _Terms
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Dice part, and the two parts of its derivative by `p`, `(B, K)` each.

    The second part applies to the channel of a voxel's own label. Both are multiplied by the number of
    processes, which average their gradients.
    """
    batch, classes = p.shape[:2]
    organs = contoured.to(p.dtype)
    index = y + torch.arange(batch, device=y.device)[:, None] * classes
    index = index.flatten()
    overlap = torch.bincount(index, own.flatten(), minlength=batch * classes)
    truth = torch.bincount(index, minlength=batch * classes)
    overlap, truth = (sums.view(batch, classes).to(p.dtype) for sums in (overlap, truth))
    total = (p.sum(2) + truth) * organs
    pooled = terms.pool(
        torch.stack([overlap.sum(0), total.sum(0), organs.sum(0), torch.ones_like(organs[0])])
    )
    overlap, total, cases, processes = pooled
    is_counted = cases > 0
    is_counted[0] = False
    number = is_counted.sum().clamp(min=1)
    ratio = (2 * overlap + DICE_SMOOTH) / (total + DICE_SMOOTH)
    loss = ((1 - ratio) * is_counted).sum() / number
    scale = terms.dice_weight * processes * is_counted / number / (total + DICE_SMOOTH)
    return loss, scale * ratio * organs, -2 * scale * organs
