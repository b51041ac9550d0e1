"""The network of a classification run: one of this package, or any model of timm."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from pvt_det.classification.config import TrainConfig
from pvt_det.errors import ConfigError
from pvt_det.models import create_model, list_models
from pvt_det.models.timm_models import create_timm_model

# Names of the normalization layers in timm, by value of `norm`.
_NORMS = {"GN": "groupnorm"}


def build_classifier(cfg: TrainConfig, num_classes: int) -> nn.Module:
    """Build the network that `cfg.model` names, with random weights.

    Args:
        cfg: The config of the run. A name that this package and timm have is that of this package.
        num_classes: Number of classes.

    Returns:
        A network on the CPU that maps `N×3×H×W` images to `N×num_classes` logits. The keys of its state dict are the
        published ones or those of timm.

    Raises:
        ConfigError: The model does not have an option that is set, or does not take images of `cfg.img_size`.
    """
    if cfg.model in list_models():
        trunk = create_model(cfg.model, num_classes, cfg.drop_path_rate, cfg.img_size)
        trunk.checkpoint_stages = cfg.stages()
        return trunk
    options: dict[str, Any] = {"num_classes": num_classes}
    if cfg.norm:
        options["norm_layer"] = _NORMS[cfg.norm]
    model, reason = create_timm_model(cfg.model, cfg.drop_path_rate, img_size=cfg.img_size, **options)
    if model is None:
        raise ConfigError(f"model = {cfg.model!r}: {reason}. Set --drop-path-rate 0.")
    _try(cfg, model)
    return model


def is_resnet(name: str) -> bool:
    """Return whether a model of timm is a ResNet, whose normalization can be chosen.

    Args:
        name: Name of a model of timm.
    """
    return timm.models.model_entrypoint(name).__module__ == "timm.models.resnet"


@torch.no_grad()
def _try(cfg: TrainConfig, model: nn.Module) -> None:
    """Check that the model takes images of the configured size."""
    image = torch.zeros(1, 3, cfg.img_size, cfg.img_size, device=next(model.parameters()).device)
    try:
        model.eval()(image)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model = {cfg.model!r}: it fails on images of {cfg.img_size} pixels ({error}). Change --img-size."
        ) from error
    model.train()
