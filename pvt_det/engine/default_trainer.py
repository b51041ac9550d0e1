"""The parts of this package for projects that keep Detectron2's DefaultTrainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from pvt_det.data.loader import build_detection_test_loader, build_detection_train_loader
from pvt_det.evaluation.build import build_evaluator
from pvt_det.run_folder import inference_folder
from pvt_det.solver.build import build_gradient_clipper, build_lr_scheduler, build_optimizer, total_gradient_norm

__all__ = ["PVTParts"]


class PVTParts:
    """Mixin that gives Detectron2's DefaultTrainer this package's optimizer, schedule, data loading and evaluation.

    Use it as `class Trainer(PVTParts, DefaultTrainer): pass`. The training loop stays Detectron2's: it has no moving
    average of the weights, no gradient accumulation, no bf16, and runs that are resumed do not continue exactly.
    `PVTTrainer` has all of that.
    """

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer of `SOLVER.OPTIMIZER`, which clips the gradients as in `SOLVER.CLIP_GRADIENTS`.

        Args:
            cfg: The run's config.
            model: The model to optimize.

        Returns:
            The optimizer.
        """
        # A fused optimizer would leave the gradients scaled, so that they could not be clipped.
        optimizer = build_optimizer(cfg, model, fused=not cfg.SOLVER.AMP.ENABLED)
        clipper, norm_type = build_gradient_clipper(cfg), cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE
        if clipper is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            optimizer.register_step_pre_hook(lambda *_: clipper(parameters, total_gradient_norm(parameters, norm_type)))
        return optimizer

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Build the schedule of `SOLVER.LR_SCHEDULER_NAME`.

        Args:
            cfg: The run's config.
            optimizer: The optimizer whose learning rates are scheduled.

        Returns:
            The schedule.
        """
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Build the training loader with the augmentations of `INPUT`.

        Args:
            cfg: The run's config. Its data sets must be registered.

        Returns:
            An endless iterable of batches.
        """
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Build the test loader, which resizes images as training does.

        Args:
            cfg: The run's config.
            dataset_name: Registered name of the data set.

        Returns:
            An iterable of batches with one image each.
        """
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the evaluator of a data set, which writes to `OUTPUT_DIR/inference`.

        Args:
            cfg: The run's config.
            dataset_name: Registered name of the data set.

        Returns:
            The evaluator.
        """
        folder = inference_folder(cfg.OUTPUT_DIR, dataset_name)
        folder.mkdir(parents=True, exist_ok=True)
        return build_evaluator(cfg, dataset_name, folder)
