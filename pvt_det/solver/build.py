"""Build the optimizer, learning-rate schedule and gradient clipping of a config."""

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

__all__ = ["build_lr_scheduler", "build_optimizer"]

# Names of the parameters of a detector's trunk begin with this.
_TRUNK = "backbone.bottom_up."
# Takes the parameters and the norm of all their gradients, and clips the gradients in place.
GradientClipper = Callable[[Sequence[nn.Parameter], Tensor], None]

OPTIMIZERS = ("adamw", "sgd")


def build_optimizer(cfg: CfgNode, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
    """Build AdamW or SGD (`SOLVER.OPTIMIZER`) for the parameters that require gradients.

    Parameter groups follow Detectron2's rules. `WEIGHT_DECAY` applies to all parameters. If they are set,
    `WEIGHT_DECAY_NORM` replaces it for normalization layers and `WEIGHT_DECAY_BIAS` for biases. The learning rate of
    biases is multiplied by `BIAS_LR_FACTOR`, and that of the trunk by `BACKBONE_MULTIPLIER`. The published PVT
    detectors use the same decay for all parameters, including normalization layers.

    Args:
        cfg: Config whose `SOLVER` is read.
        model: Model to optimize.
        fused: Whether to use the fused kernels, which are the fastest on both CPUs and GPUs.

    Raises:
        ConfigError: No parameter requires a gradient, or the optimizer's name is unknown.
    """
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: solver.BACKBONE_MULTIPLIER if name.startswith(_TRUNK) else 1.0,
    )
    if not groups:
        raise ConfigError("No parameter of the model requires a gradient. Freeze fewer of its parts.")
    if solver.OPTIMIZER == "adamw":
        return torch.optim.AdamW(groups, lr=solver.BASE_LR, betas=tuple(solver.BETAS), fused=fused)
    if solver.OPTIMIZER == "sgd":
        return torch.optim.SGD(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, fused=fused
        )
    raise ConfigError(f"SOLVER.OPTIMIZER = {solver.OPTIMIZER!r}: expected one of {', '.join(OPTIMIZERS)}.")


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the learning-rate schedule of a config, to be stepped once per iteration.

    `SOLVER.LR_SCHEDULER_NAME` selects one of Detectron2's schedules (multi-step, cosine, fixed gamma) or the polynomial
    "WarmupPolyLR". All of them start with a warm-up.

    Args:
        cfg: Config whose `SOLVER` is read.
        optimizer: Optimizer whose learning rates are scheduled.

    Raises:
        ConfigError: The schedule's name or values are invalid.
    """
    try:
        if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR":
            return _build_poly_scheduler(cfg, optimizer)
        return build_detectron2_lr_scheduler(cfg, optimizer)
    except (ValueError, AssertionError) as error:
        solver = cfg.SOLVER
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME = {solver.LR_SCHEDULER_NAME!r} with STEPS = {tuple(solver.STEPS)}, MAX_ITER = "
            f"{solver.MAX_ITER}, WARMUP_METHOD = {solver.WARMUP_METHOD!r}: {error or 'invalid values'}. "
            "Expected WarmupMultiStepLR, WarmupCosineLR, WarmupStepWithFixedGammaLR or WarmupPolyLR, and rising STEPS."
        ) from error


def _build_poly_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Build MMSegmentation's "poly" policy (DeepLab, arXiv 1606.00915, section 4.1) after a warm-up."""
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
    """Build the gradient clipping of `SOLVER.CLIP_GRADIENTS`.

    `CLIP_TYPE` "full_model" scales all gradients so that their total norm is at most `CLIP_VALUE`. As in Detectron2,
    "norm" does so for each parameter separately, and "value" clamps every element.

    Args:
        cfg: Config whose `SOLVER.CLIP_GRADIENTS` is read.

    Returns:
        A function that clips gradients in place, or None if clipping is disabled.

    Raises:
        ConfigError: The type is unknown or the value is not positive.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    limit, norm_type = float(clip.CLIP_VALUE), float(clip.NORM_TYPE)
    if limit <= 0:
        raise ConfigError(f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE = {limit}: expected a positive number.")

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
    """Compute the norm of all gradients together.

    Args:
        parameters: Parameters. Those without a gradient are ignored.
        norm_type: Order of the norm, such as 2.0 or infinity.

    Returns:
        A scalar, which is not finite if any element of a gradient is not finite.
    """
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], norm_type)
