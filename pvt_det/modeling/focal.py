"""The focal loss of dense predictions (https://arxiv.org/abs/1708.02002, equation 5), in little time and memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores that are worked on at a time: on a CPU those that stay in its cache; on a GPU many, for few calls.
_SCORES_AT_ONCE = {"cpu": 2**17}
_SCORES_AT_ONCE_ELSEWHERE = 2**25


def dense_focal_loss(logits: list[Tensor], labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum the focal loss over all anchors and classes, in fp32 whatever the logits' type.

    An image of 800×1333 has 200,000 anchors of 80 classes each: 16 million scores. The usual formula on whole tensors
    keeps ten of that size. Here the gradient is computed along with the loss, part by part, and is all that is kept.

    Args:
        logits: Each level's, `N×R_l×K`.
        labels: `N×R`, R being the sum of all R_l: 0 … K-1, K for background, -1 to ignore.
        alpha: Weight of the scores that ought to be 1, in [0, 1], the others' being 1 - alpha; below 0: no weights.
        gamma: Exponent of the focusing factor, 0 or more.

    Returns:
        The sum, a scalar in fp32.
    """
    return _DenseFocalLoss.apply(labels, alpha, gamma, *logits)


class _DenseFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, labels: Tensor, alpha: float, gamma: float, *logits: Tensor) -> Tensor:
        weights = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
        keep = any(ctx.needs_input_grad)
        total = labels.new_zeros((), dtype=torch.float32)
        gradients = []
        levels = labels.split([level.shape[1] for level in logits], dim=1)
        for level, their_labels in zip(logits, levels, strict=True):
            # Until it is multiplied by the loss's scale, most of the background's gradient is below fp16's numbers.
            dtype = torch.float32 if level.dtype == torch.float16 else level.dtype
            gradient = torch.empty(level.shape, dtype=dtype, device=level.device) if keep else None
            # Images one after the other, so that a GPU gets whole batches at a time.
            rows, row_labels = level.flatten(0, 1), their_labels.flatten()
            size = max(1, _SCORES_AT_ONCE.get(level.device.type, _SCORES_AT_ONCE_ELSEWHERE) // level.shape[2])
            for part in (slice(start, start + size) for start in range(0, len(rows), size)):
                loss, slope = _part(rows[part].float(), row_labels[part], weights, gamma, keep)
                total += loss
                if gradient is not None and slope is not None:
                    gradient.view_as(rows)[part] = slope
            gradients.append(gradient)
        ctx.gradients = gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        # Autograd brings those in fp32 into the logits' type.
        return (None, None, None, *(gradient.mul_(output) for gradient in gradients))


def _part(
    logits: Tensor, labels: Tensor, weights: tuple[float, float], gamma: float, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient of `R×K` logits with `R` labels: as if all were background first, then as the labels say."""
    loss, slope = _term(logits, gamma, keep)
    loss *= weights[1]
    # Every row's score of its own class, or of some class: picking the rows that have one would stall a GPU.
    own = labels.clamp(0, logits.shape[1] - 1)[:, None]
    is_positive = (labels == own[:, 0])[:, None]
    is_ignored = (labels < 0)[:, None]
    own_loss, own_slope = _term(-logits.gather(1, own), gamma, keep)
    loss.scatter_(1, own, torch.where(is_positive, own_loss * weights[0], loss.gather(1, own)))
    loss.masked_fill_(is_ignored, 0)
    if slope is not None and own_slope is not None:
        slope *= weights[1]
        slope.scatter_(1, own, torch.where(is_positive, own_slope * -weights[0], slope.gather(1, own)))
        slope.masked_fill_(is_ignored, 0)
    return loss.sum(), slope


def _term(x: Tensor, gamma: float, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Of p = sigmoid(x), `-p^gamma log(1 - p)` and its derivative."""
    p = x.sigmoid()
    cross_entropy = _softplus(x)
    focus = p.pow(gamma)
    loss = focus * cross_entropy
    if not keep:
        return loss, None
    # p^gamma (gamma (1 - p) ce + p), made in place.
    return loss, cross_entropy.mul_(1 - p).mul_(gamma).add_(p).mul_(focus)


def _softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))` as exact as torch's, whose log1p takes 70 times as long as its log on a CPU (torch 2.14)."""
    small = x.abs().neg_().exp_()
    one_more = small + 1
    # What `1 + small` lost in rounding comes back by the factor (Higham, Accuracy and Stability, section 1.14.1).
    log1p = one_more.log().mul_(small).div_(one_more - 1)
    return torch.where(one_more == 1, small, log1p).add_(x.clamp(min=0))
