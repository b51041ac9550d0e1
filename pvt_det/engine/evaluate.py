"""Evaluation of a detector on the test data sets of a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from pvt_det.data.augmentation.transforms import build_tta_resizes
from pvt_det.data.loader import build_detection_test_loader, build_detection_validation_loader
from pvt_det.evaluation.build import build_evaluator
from pvt_det.modeling.test_time_augmentation import build_tta
from pvt_det.utils.precision import inference_autocast

Results = dict[str, Any]


def evaluate(cfg: CfgNode, model: nn.Module, before_image: Callable[[], None] = lambda: None) -> Results:
    """Evaluate `model` on every data set of `DATASETS.TEST`; every process takes its part of the images.

    Args:
        cfg: The run's config; detections go to `OUTPUT_DIR/inference/<data set>`. With `TEST.AUG.ENABLED` every image
            is seen at several sizes.
        model: A bare detector; its mode is left as it was.
        before_image: Called before every image; may raise to stop.

    Returns:
        On the first process, metrics by task as Detectron2 nests them, `{"bbox": {"AP": …}}`, in percent; with several
        data sets, by their names first. With `TEST.VALIDATION_LOSS` there is a task `validation` with the losses.
        On other processes, an empty dictionary.
    """
    was_training = model.training
    try:
        results = {name: _evaluate_one(cfg, model, name, before_image) for name in cfg.DATASETS.TEST}
    finally:
        model.train(was_training)
    if not comm.is_main_process():
        return {}
    return next(iter(results.values())) if len(results) == 1 else results


def inference_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Where a data set's detections are written."""
    return Path(cfg.OUTPUT_DIR) / "inference" / dataset_name


def _evaluate_one(cfg: CfgNode, model: nn.Module, name: str, before_image: Callable[[], None]) -> Results:
    folder = inference_folder(cfg, name)
    folder.mkdir(parents=True, exist_ok=True)
    evaluator = build_evaluator(cfg, name, str(folder))
    test_cfg, detector = build_tta(cfg, model, build_tta_resizes(cfg))
    loader = build_detection_test_loader(test_cfg, name)
    with inference_autocast(cfg):
        results = dict(inference_on_dataset(detector, loader, evaluator, callbacks={"before_inference": before_image}))
    if cfg.TEST.VALIDATION_LOSS:
        results["validation"] = validation_losses(cfg, model, name, before_image)
    return results


def validation_losses(
    cfg: CfgNode, model: nn.Module, dataset_name: str, before_image: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Losses on a data set with its test-time transforms, averaged over images and processes.

    The backbone, batch norms and dropout are in evaluation mode and no buffer changes; Mask R-CNN's sampling of
    proposals stays random.

    Returns:
        Every loss and their sum, `total_loss`.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _losses_without_side_effects(model)
    sums: dict[str, torch.Tensor] = {}
    count = 0
    with torch.no_grad(), EventStorage():
        for batch in build_detection_validation_loader(cfg, dataset_name):
            before_image()
            for name, value in model(batch).items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.float()
            count += 1
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    parts = comm.all_gather(({name: float(value) for name, value in sums.items()}, count))
    images = sum(part_count for _, part_count in parts)
    names = sorted({name for part, _ in parts for name in part})
    losses = {name: sum(part.get(name, 0.0) for part, _ in parts) / images for name in names}
    return {"total_loss": sum(losses.values()), **losses}


def _losses_without_side_effects(model: nn.Module) -> None:
    # Detectron2's heads give losses in training mode only.
    model.train()
    model.get_submodule("backbone").eval()
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
            module.eval()
