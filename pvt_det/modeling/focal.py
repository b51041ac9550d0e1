"""Fast and memory-efficient focal loss (https://arxiv.org/abs/1708.02002, equation 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Number of scores to process at a time: on a CPU as many as stay in the cache, on a GPU many, for few kernel launches.
_CHUNK_SCORES = {"cpu": 2**17}
_DEFAULT_CHUNK_SCORES = 2**25


def dense_focal_loss(logits: list[Tensor], labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum the focal loss over all anchors and classes, in fp32 whatever the dtype of the logits.

    An image of 800×1333 pixels has 200,000 anchors with 80 classes, that is 16 million scores. The usual formula on
    whole tensors saves ten tensors of this size. This function computes the gradient together with the loss, chunk by
    chunk, and saves only the gradient.

    Args:
        logits: Logits of each level, `N×R_l×K`.
        labels: Labels `N×R`, where R is the sum of all R_l: a class 0 … K-1, K for background, or -1 to ignore.
        alpha: Weight of positive scores, in [0, 1]. The weight of negative scores is 1 - alpha. If below 0, no weights
            are used.
        gamma: Exponent of the focusing factor, at least 0.

    Returns:
        The sum, an fp32 scalar.
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
        for level, level_labels in zip(logits, levels, strict=True):
            # Before it is multiplied by the loss scale, most of the background's gradient underflows in fp16.
            dtype = torch.float32 if level.dtype == torch.float16 else level.dtype
            gradient = torch.empty(level.shape, dtype=dtype, device=level.device) if keep else None
            # Chunks span several images, so that a GPU processes whole batches at a time.
            rows, row_labels = level.flatten(0, 1), level_labels.flatten()
            size = max(1, _CHUNK_SCORES.get(level.device.type, _DEFAULT_CHUNK_SCORES) // level.shape[2])
            for chunk in (slice(start, start + size) for start in range(0, len(rows), size)):
                loss, chunk_gradient = _chunk_loss(rows[chunk].float(), row_labels[chunk], weights, gamma, keep)
                total += loss
                if gradient is not None and chunk_gradient is not None:
                    gradient.view_as(rows)[chunk] = chunk_gradient
            gradients.append(gradient)
        ctx.gradients = gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        # Autograd casts fp32 gradients to the dtype of the logits.
        return (None, None, None, *(gradient.mul_(grad) for gradient in gradients))


def _chunk_loss(
    logits: Tensor, labels: Tensor, weights: tuple[float, float], gamma: float, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute loss and gradient of `R×K` logits with `R` labels, first as if all were background."""
    loss, gradient = _focal_term(logits, gamma, keep)
    loss *= weights[1]
    # Process the labeled class of every row, and class K-1 or 0 of rows without one. Selecting the rows with a class
    # would synchronize with the GPU.
    target = labels.clamp(0, logits.shape[1] - 1)[:, None]
    is_positive = (labels == target[:, 0])[:, None]
    is_ignored = (labels < 0)[:, None]
    target_loss, target_gradient = _focal_term(-logits.gather(1, target), gamma, keep)
    loss.scatter_(1, target, torch.where(is_positive, target_loss * weights[0], loss.gather(1, target)))
    loss.masked_fill_(is_ignored, 0)
    if gradient is not None and target_gradient is not None:
        gradient *= weights[1]
        gradient.scatter_(
            1, target, torch.where(is_positive, target_gradient * -weights[0], gradient.gather(1, target))
        )
        gradient.masked_fill_(is_ignored, 0)
    return loss.sum(), gradient


def _focal_term(x: Tensor, gamma: float, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Compute `-p^gamma log(1 - p)` with p = sigmoid(x), and its derivative if `keep` is true."""
    p = x.sigmoid()
    cross_entropy = _softplus(x)
    focus = p.pow(gamma)
    loss = focus * cross_entropy
    if not keep:
        return loss, None
    # p^gamma (gamma (1 - p) ce + p), computed in place.
    return loss, cross_entropy.mul_(1 - p).mul_(gamma).add_(p).mul_(focus)


def _softplus(x: Tensor) -> Tensor:
    """Compute `log(1 + exp(x))` as precisely as PyTorch, but without its slow log1p."""
    # On a CPU, log1p takes 70 times as long as log (torch 2.14).
    small = x.abs().neg_().exp_()
    one_plus = small + 1
    # The factor corrects the rounding of `1 + small` (Higham, Accuracy and Stability, section 1.14.1).
    log1p = one_plus.log().mul_(small).div_(one_plus - 1)
    return torch.where(one_plus == 1, small, log1p).add_(x.clamp(min=0))
