"""What a classification run consists of, and where it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import Mixup
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from pvt_det.data.imagenet.loader import TrainSampler
from pvt_det.data.imagenet.transforms import DeviceInput
from pvt_det.solver.state import load_optimizer


@dataclass
class TrainState:
    """Everything that trains; `pvt_det.classification.build.build_train_state` builds it from the config.

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


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        epoch: The current epoch, from 0.
        step: Updates done in it.
        best_top1: Best top-1 so far, in percent; -1 before the first evaluation.
        best_top5: Top-5 of the same weights.
        broken: Indices of the broken images met so far.
    """

    epoch: int = 0
    step: int = 0
    best_top1: float = -1.0
    best_top5: float = -1.0
    broken: list[int] = field(default_factory=list)


class Interval:
    """Loss and speed since the last row of metrics.

    Attributes:
        loss_sum: Sum of the updates' losses, on the device, so that adding to it does not synchronize.
        updates: Number of updates in it.
        waited: Seconds spent waiting for batches since the clock was started.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss_sum, self.updates = torch.zeros((), device=device), 0
        self.start_clock()

    def start_clock(self) -> None:
        """Start to measure time, which does not include what was before."""
        self.waited, self._started, self._timed = 0.0, time.perf_counter(), 0

    def count_update(self) -> None:
        """Count one update."""
        self.updates += 1
        self._timed += 1

    def speed(self) -> tuple[float, float]:
        """Updates per second, and the share of the time spent waiting for batches, from 0 to 1."""
        seconds = time.perf_counter() - self._started
        return self._timed / seconds, self.waited / seconds

    def restart(self) -> None:
        """Begin the next interval."""
        self.loss_sum.zero_()
        self.updates = 0
        self.start_clock()

    def state_dict(self) -> dict[str, Any]:
        """The loss so far; time is not saved."""
        return {"loss_sum": self.loss_sum, "count": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        loss_sum: Tensor = state["loss_sum"]
        self.loss_sum.copy_(loss_sum)
        self.updates = state["count"]
