"""Optimizer and schedule of ImageNet classification, as in the published recipe."""

from __future__ import annotations

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

# The published code decays everything of 2 or more dimensions but this; position embeddings are decayed.
NOT_DECAYED = ("cls_token",)


def build_optimizer(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW with weight decay on everything but the class token, biases and other 1-D parameters."""
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
    """Cosine decay over all updates, after a linear warm-up; `step_update(n)` sets the rate of update n.

    At update t of T, after w updates of warm-up: lr = min_lr + (base - min_lr) (1 + cos(π t / T)) / 2, and before,
    lr = warmup_lr + (base - warmup_lr) t / w.

    The published code runs the same curve once an epoch and one epoch late: its epochs 0 and 1 both train at
    `warmup_lr`, and epoch e at the rate of e - 1. Here every update has the rate that the curve gives for it.

    Args:
        optimizer: Its groups' rates are the base.
        epochs: Length of the run.
        updates_per_epoch: Optimizer steps in an epoch.
        warmup_epochs: Length of the warm-up; part of the run, and fractions are allowed.
        warmup_lr: Rate of update 0, if there is a warm-up.
        min_lr: Rate that the cosine ends in.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=epochs * updates_per_epoch,
        lr_min=min_lr,
        warmup_t=round(warmup_epochs * updates_per_epoch),
        warmup_lr_init=warmup_lr,
        t_in_epochs=False,
    )
