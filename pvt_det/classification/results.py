"""Writes the `results.json` of a classification run, which `pvt-det compare` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pvt_det.classification.config import TrainConfig
from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.models.complexity import count_gmacs, count_parameters
from pvt_det.reports.published import IMAGENET
from pvt_det.run_folder import save_results
from pvt_det.utils.environment import environment
from pvt_det.utils.paths import make_folder

_IMAGENET_CLASSES, _IMAGENET_IMAGES = 1000, 50_000


def write_results(
    folder: Path, cfg: TrainConfig, model: nn.Module, validation: ImageSource, top1: float, top5: float
) -> Path:
    """Write `results.json`: which model, how trained, on what, where, and its accuracy.

    Args:
        folder: Where to; made if missing.
        cfg: The config of the run.
        model: The classifier, for its size and its cost at the size of its input.
        validation: The images that it was evaluated on.
        top1: Accuracy in percent.
        top5: The same for the five likeliest classes.
    """
    side = cfg.img_size
    image = torch.zeros(1, 3, side, side, device=next(model.parameters()).device)
    results = {
        "config_file": cfg.model,
        "model": f"{cfg.model} classifier",
        "recipe": _recipe(cfg),
        "dataset": _dataset_name(cfg, validation),
        "parameters": count_parameters(model),
        "gmacs": f"{count_gmacs(model, image):.1f} ({side}x{side})",
        "metrics": {"classification": {"top1": top1, "top5": top5}},
        "results_file": "",
        "annotations": "",
        "seed": cfg.seed,
        "environment": environment(image.device),
    }
    make_folder(folder)
    return save_results(folder, results)


def _recipe(cfg: TrainConfig) -> str:
    if cfg.eval_only:
        return f"weights {cfg.weights}, {cfg.img_size} pixels"
    return (
        f"adamw lr {cfg.scaled_lr():g}, batch {cfg.batch_size}, {cfg.epochs} epochs, "
        f"{cfg.img_size} pixels, seed {cfg.seed}"
    )


def _dataset_name(cfg: TrainConfig, validation: ImageSource) -> str:
    """The name that published numbers are set against for ImageNet-1k's own images, else the folder's."""
    if (len(validation.classes), len(validation)) == (_IMAGENET_CLASSES, _IMAGENET_IMAGES):
        return IMAGENET
    return f"{Path(cfg.data).name}_val"
