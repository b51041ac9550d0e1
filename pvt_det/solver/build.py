"""Optimizer, learning-rate schedule and gradient clipping from a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import Tensor, nn

from pvt_det.errors import ConfigError

# Takes the parameters and the norm over all their gradients; changes the gradients in place.
GradientClipper = Callable[[Sequence[nn.Parameter], Tensor], None]

OPTIMIZERS = ("adamw", "sgd")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD (`SOLVER.OPTIMIZER`) over the parameters that take a gradient.

    Parameters fall into groups by Detectron2's rules: `WEIGHT_DECAY` on all, but `WEIGHT_DECAY_NORM` on those of
    normalisation layers and `WEIGHT_DECAY_BIAS` on biases where these are set; the learning rate of biases is
    multiplied by `BIAS_LR_FACTOR`. The published PVT detectors decay everything alike, norms included.

    Raises:
        ConfigError: No parameter takes a gradient, or the optimizer's name is unknown.
    """
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    if not groups:
        raise ConfigError("No parameter of the model takes a gradient: freeze fewer of its parts.")
    # The fused kernels are the fastest on both CPU and GPU.
    if solver.OPTIMIZER == "adamw":
        return torch.optim.AdamW(groups, lr=solver.BASE_LR, betas=tuple(solver.BETAS), fused=True)
    if solver.OPTIMIZER == "sgd":
        return torch.optim.SGD(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, fused=True
        )
    raise ConfigError(f"SOLVER.OPTIMIZER = {solver.OPTIMIZER!r}: expected one of {', '.join(OPTIMIZERS)}.")


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule: a warm-up, then Detectron2's steps, cosine or fixed decay, or a power; one tick an iteration.

    Raises:
        ConfigError: The schedule's name or numbers are wrong.
    """
    try:
        if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR":
            return _build_poly_scheduler(cfg, optimizer)
        return build_detectron2_lr_scheduler(cfg, optimizer)
    except (ValueError, AssertionError) as error:
        solver = cfg.SOLVER
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME = {solver.LR_SCHEDULER_NAME!r} with STEPS = {tuple(solver.STEPS)}, MAX_ITER = "
            f"{solver.MAX_ITER}, WARMUP_METHOD = {solver.WARMUP_METHOD!r}: {error or 'impossible values'}. "
            "Known names: WarmupMultiStepLR, WarmupCosineLR, WarmupStepWithFixedGammaLR, WarmupPolyLR; STEPS must rise."
        ) from error


def _build_poly_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """MMSegmentation's "poly" policy (DeepLab, arXiv 1606.00915, section 4.1), after Detectron2's warm-up."""
    solver = cfg.SOLVER
    schedule = WarmupParamScheduler(
        PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper | None:
    """Build the clipping of `SOLVER.CLIP_GRADIENTS`, or None when it is off.

    `CLIP_TYPE` "full_model" scales all gradients so that their common norm is at most `CLIP_VALUE`; "norm" does so
    for each parameter by itself and "value" clamps every element (both as in Detectron2).

    Raises:
        ConfigError: The type is unknown or the value is not above zero.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    limit, norm_type = float(clip.CLIP_VALUE), float(clip.NORM_TYPE)
    if limit <= 0:
        raise ConfigError(f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE = {limit}: expected a number above zero.")

    def clip_full_model(parameters: Sequence[nn.Parameter], norm: Tensor) -> None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def clip_each_norm(parameters: Sequence[nn.Parameter], norm: Tensor) -> None:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, limit, norm_type)

    def clip_each_value(parameters: Sequence[nn.Parameter], norm: Tensor) -> None:
        nn.utils.clip_grad_value_(parameters, limit)

    clippers: dict[str, GradientClipper] = {
        "full_model": clip_full_model,
        "norm": clip_each_norm,
        "value": clip_each_value,
    }
    if clip.CLIP_TYPE not in clippers:
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE = {clip.CLIP_TYPE!r}: expected one of {', '.join(clippers)}."
        )
    return clippers[clip.CLIP_TYPE]


def total_gradient_norm(parameters: Sequence[nn.Parameter], norm_type: float) -> Tensor:
    """Norm over all elements of all gradients; a scalar that is not finite when any element is not."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], norm_type)
