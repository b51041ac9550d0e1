"""Builds the parts of a classification run from its config."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import Mixup
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pvt_det.classification.config import TrainConfig
from pvt_det.classification.evaluator import Evaluator
from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.data.imagenet.loader import (
    EvalImages,
    TrainImages,
    TrainSampler,
    build_eval_loader,
    build_train_loader,
)
from pvt_det.data.imagenet.transforms import Augmentation, DeviceInput, EvalTransform, TrainTransform
from pvt_det.errors import ConfigError
from pvt_det.solver.classification import build_optimizer, build_schedule
from pvt_det.solver.state import load_optimizer
from pvt_det.utils.distributed import Process
from pvt_det.utils.precision import autocast


@dataclass
class TrainState:
    """Everything that trains; `build_train_state` builds it from the config.

    Attributes:
        model: The network, not wrapped for distributed training.
        ema: Exponential moving average of its weights, or None.
        optimizer: Over the network's parameters.
        schedule: Sets the optimizer's learning rates, update by update.
        scaler: Scales the loss; only enabled for fp16.
        autocast: Makes the context for the number format of the forward pass.
        mixup: Mixes a batch of images and labels, or None.
        prepare: Moves images to the device, normalizes them and erases rectangles.
        sampler: The order of the training images.
        loader: Their batches.
    """

    model: nn.Module
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    schedule: CosineLRScheduler
    scaler: torch.amp.GradScaler
    autocast: Callable[[], torch.autocast]
    mixup: Mixup | None
    prepare: DeviceInput
    sampler: TrainSampler
    loader: DataLoader

    @property
    def evaluated_model(self) -> nn.Module:
        """The network whose accuracy counts: the moving average if there is one, or else the model."""
        return self.ema.module if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        """The weights and the states of optimizer and scaler. The schedule depends on the update alone."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def build_train_state(cfg: TrainConfig, process: Process, images: ImageSource, model: nn.Module) -> TrainState:
    """Build everything that trains.

    Args:
        cfg: The config.
        process: This process.
        images: The training images.
        model: The network; it is moved to the device.

    Raises:
        ConfigError: The batch size does not divide into the processes, or is larger than an epoch.
    """
    loader, sampler = _build_loader(cfg, process, images)
    _place_model(cfg, process, model)
    betas = (cfg.beta1, cfg.beta2)
    optimizer = build_optimizer(model, cfg.scaled_lr(), cfg.weight_decay, betas, cfg.eps)
    schedule = build_schedule(
        optimizer,
        epochs=cfg.epochs,
        updates_per_epoch=len(loader) // cfg.accumulate_steps,
        warmup_epochs=cfg.warmup_epochs,
        warmup_lr=cfg.warmup_lr,
        min_lr=cfg.min_lr,
    )
    return TrainState(
        model=model,
        ema=AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay)) if cfg.ema_decay else None,
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler(process.device.type, enabled=cfg.amp == "fp16"),
        autocast=_build_autocast(cfg, process),
        mixup=_build_mixup(cfg, len(images.classes)),
        prepare=DeviceInput(process.device, cfg.erase_prob, cfg.erase_mode, cfg.channels_last),
        sampler=sampler,
        loader=loader,
    )


def build_evaluator(cfg: TrainConfig, process: Process, images: ImageSource) -> Evaluator:
    """Build what evaluates a network on the validation images."""
    transform = EvalTransform(cfg.img_size, cfg.crop_pct, cfg.interpolation)
    loader = build_eval_loader(
        EvalImages(images, transform, cfg.img_size),
        cfg.eval_batch_size,
        num_workers(cfg),
        process.device.type == "cuda",
        process.rank,
        process.world_size,
    )
    prepare = DeviceInput(process.device, channels_last=cfg.channels_last)
    return Evaluator(images, loader, prepare, _build_autocast(cfg, process), process, cfg.max_broken)


def batch_size_per_process(cfg: TrainConfig, world_size: int) -> int:
    """Number of images in one batch of one process.

    Raises:
        ConfigError: The batch size does not divide into the processes and accumulated batches.
    """
    parts = world_size * cfg.accumulate_steps
    size, rest = divmod(cfg.batch_size, parts)
    mixed = bool(cfg.mixup or cfg.cutmix)
    if rest or size == 0 or (mixed and size % 2):
        even = ", each of an even number of images for mixup and cutmix" if mixed else ""
        raise ConfigError(
            f"batch_size = {cfg.batch_size} does not divide into {parts} batches ({world_size} processes, "
            f"{cfg.accumulate_steps} accumulated){even}: change --batch-size or --accumulate-steps."
        )
    return size


def num_workers(cfg: TrainConfig) -> int:
    """Number of data loader processes: not more than there are cores."""
    return min(cfg.workers, len(os.sched_getaffinity(0)))


def _build_loader(cfg: TrainConfig, process: Process, images: ImageSource) -> tuple[DataLoader, TrainSampler]:
    batch_size, pin = batch_size_per_process(cfg, process.world_size), process.device.type == "cuda"
    sampler = TrainSampler(len(images), cfg.repeats, cfg.seed, process.rank, process.world_size)
    augmentation = Augmentation(
        crop_scale=(cfg.crop_scale, 1.0),
        flip=cfg.flip,
        rand_augment=cfg.rand_augment,
        color_jitter=cfg.color_jitter,
        interpolation=cfg.interpolation,
    )
    dataset = TrainImages(images, TrainTransform(cfg.img_size, augmentation), cfg.seed)
    loader = build_train_loader(dataset, sampler, batch_size, num_workers(cfg), pin)
    if len(loader) < cfg.accumulate_steps:
        raise ConfigError(
            f"batch_size = {cfg.batch_size} exceeds the {len(sampler) * process.world_size} images of an epoch: "
            "lower --batch-size."
        )
    return loader, sampler


def _place_model(cfg: TrainConfig, process: Process, model: nn.Module) -> None:
    # Set on every device, so that a resumed run gives the same bits wherever only one library differs.
    torch.use_deterministic_algorithms(cfg.deterministic, warn_only=True)
    model.to(process.device)
    if cfg.channels_last:
        model.to(memory_format=torch.channels_last)
    if cfg.compile:
        model.compile()


def _build_mixup(cfg: TrainConfig, num_classes: int) -> Mixup | None:
    if not (cfg.mixup or cfg.cutmix):
        return None
    return Mixup(
        mixup_alpha=cfg.mixup,
        cutmix_alpha=cfg.cutmix,
        prob=cfg.mix_prob,
        switch_prob=cfg.mix_switch_prob,
        label_smoothing=cfg.label_smoothing,
        num_classes=num_classes,
    )


def _build_autocast(cfg: TrainConfig, process: Process) -> Callable[[], torch.autocast]:
    return functools.partial(autocast, process.device, "fp32" if cfg.amp == "none" else cfg.amp)
