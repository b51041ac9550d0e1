"""Build the model, optimizer, data loaders and evaluator of a classification run from its config."""

from __future__ import annotations

import functools
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
from pvt_det.utils.environment import available_cores
from pvt_det.utils.precision import autocast


@dataclass
class TrainState:
    """The objects that take part in training. `build_train_state` builds them from the config.

    Attributes:
        model: The network, not wrapped for distributed training.
        ema: Exponential moving average of the network's weights, or None.
        optimizer: The optimizer of the network's parameters.
        schedule: The learning rate schedule, stepped once per update.
        scaler: The loss scaler, enabled for fp16 only.
        autocast: Returns the mixed precision context of the forward pass.
        mixup: Mixes a batch of images and labels, or None.
        prepare: Moves images to the device, normalizes them and applies random erasing.
        sampler: The sampler of the training images.
        loader: The loader of the training batches.
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
        """The network to evaluate: the moving average if it is enabled, otherwise the model."""
        return self.ema.module if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and the states of the optimizer and scaler. The schedule has no state of its own."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state.

        Args:
            state: The result of `state_dict`. Other keys are ignored.
        """
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def build_train_state(cfg: TrainConfig, process: Process, images: ImageSource, model: nn.Module) -> TrainState:
    """Build the objects that take part in training.

    Args:
        cfg: The config of the run.
        process: This process and its device.
        images: The training images.
        model: The network. It is moved to the device.

    Raises:
        ConfigError: The batch size is not divisible by the number of processes, or is larger than an epoch.
    """
    loader, sampler = _build_loader(cfg, process, images)
    _prepare_model(cfg, process, model)
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
    """Build the evaluator of a network on the validation images.

    Args:
        cfg: The config of the run.
        process: This process and its device.
        images: The validation images.
    """
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
    """Return the number of images in one batch of one process.

    Args:
        cfg: The config of the run.
        world_size: Number of processes, at least 1.

    Raises:
        ConfigError: The batch size is not divisible by the processes times the accumulated batches, or mixup and
            cutmix are enabled and the result is odd.
    """
    parts = world_size * cfg.accumulate_steps
    size, rest = divmod(cfg.batch_size, parts)
    mixed = bool(cfg.mixup or cfg.cutmix)
    if rest or size == 0 or (mixed and size % 2):
        even = ", each with an even number of images for mixup and cutmix" if mixed else ""
        raise ConfigError(
            f"batch_size = {cfg.batch_size} cannot be split into {parts} equal batches ({world_size} processes, "
            f"{cfg.accumulate_steps} accumulation steps){even}. Change --batch-size or --accumulate-steps."
        )
    return size


def num_workers(cfg: TrainConfig) -> int:
    """Return the number of data loader workers: `cfg.workers`, at most the number of available cores.

    Args:
        cfg: The config of the run.
    """
    return min(cfg.workers, available_cores())


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
            f"batch_size = {cfg.batch_size} exceeds the {len(sampler) * process.world_size} images of an epoch. "
            "Lower --batch-size."
        )
    return loader, sampler


def _prepare_model(cfg: TrainConfig, process: Process, model: nn.Module) -> None:
    # Set on CPUs too: resumed runs must be bit-identical on every device.
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
