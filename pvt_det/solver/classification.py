"""Optimizer and learning-rate schedule of the published ImageNet recipe."""

from __future__ import annotations

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

# The published code decays all other parameters with 2 or more dimensions, including position embeddings.
NOT_DECAYED = ("cls_token",)


def build_optimizer(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """Build AdamW with the published parameter groups.

    Weight decay applies to all parameters except the class token, biases and other 1-D parameters.

    Args:
        model: Model to optimize.
        lr: Learning rate.
        weight_decay: Weight decay of the decayed parameters.
        betas: AdamW's coefficients of the running averages, each in [0, 1).
        eps: Term added to the denominator for numerical stability.
    """
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=NOT_DECAYED)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def build_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    updates_per_epoch: int,
    warmup_epochs: float,
    warmup_lr: float,
    min_lr: float,
) -> CosineLRScheduler:
    """Build a cosine schedule with a linear warm-up.

    The schedule's `step_update(t)` sets the learning rate of update t. During the w updates of the warm-up,
    lr = warmup_lr + (base - warmup_lr) t / w. Then, with T updates in all,
    lr = min_lr + (base - min_lr) (1 + cos(π t / T)) / 2.

    The published code evaluates the same curve once per epoch and one epoch late: it trains epochs 0 and 1 at
    `warmup_lr`, and epoch e at the learning rate of e - 1. Here every update has the learning rate of the curve.

    Args:
        optimizer: Optimizer to schedule. The learning rates of its groups are the base.
        epochs: Length of the run in epochs, including the warm-up.
        updates_per_epoch: Number of optimizer steps per epoch.
        warmup_epochs: Length of the warm-up in epochs. Fractions are allowed.
        warmup_lr: Learning rate of update 0, if there is a warm-up.
        min_lr: Learning rate at the end of the cosine.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=epochs * updates_per_epoch,
        lr_min=min_lr,
        warmup_t=round(warmup_epochs * updates_per_epoch),
        warmup_lr_init=warmup_lr,
        t_in_epochs=False,
    )
