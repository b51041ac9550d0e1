"""One training iteration: forward, backward, gradient clipping and optimizer step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pvt_det.checkpoint import check_finite
from pvt_det.config.digest import leaves
from pvt_det.errors import ConfigError, NumericError
from pvt_det.solver.build import (
    GradientClipper,
    build_gradient_clipper,
    build_optimizer,
    total_gradient_norm,
)
from pvt_det.solver.ema import build_ema
from pvt_det.solver.state import load_optimizer
from pvt_det.utils.distributed import distribute
from pvt_det.utils.precision import autocast
from pvt_det.utils.text import listed


@dataclass(frozen=True)
class StepReport:
    """Result of one iteration. Losses, norm and `stop` are the same on every process.

    Attributes:
        losses: Every loss of the model by name, averaged over batches and processes.
        gradient_norm: Norm over all gradients, before clipping.
        data_seconds: Seconds that this process waited for its batches.
        stop: Whether any process requested to stop.
    """

    losses: dict[str, float]
    gradient_norm: float
    data_seconds: float
    stop: bool


class TrainStep:
    """Trains a model with one optimizer step per call, over `accumulate` batches.

    If a loss or gradient is NaN or infinite on any process, the iteration is skipped: it changes no weight and is
    counted. Too many skipped iterations in a row end the run.

    Args:
        model: The model, on its device and in training mode. It takes a batch and returns a dictionary of losses.
        optimizer: The optimizer of the model's parameters.
        device: The device of the model.
        precision: "bf16" or "fp16" for mixed precision, or "fp32" for none. With "fp16", the loss is scaled.
        accumulate: Number of batches per optimizer step.
        clipper: Clips the gradients in place before the optimizer step. None for no clipping.
        norm_type: Order p of the gradient norm that is reported and passed to the clipper.
        ema_decay: Decay of the exponential moving average of the weights, in [0, 1), or None for no average.
        max_nonfinite: Largest number of skipped iterations in a row. One more raises an error.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        precision: str = "fp32",
        accumulate: int = 1,
        clipper: GradientClipper | None = None,
        norm_type: float = 2.0,
        ema_decay: float | None = None,
        max_nonfinite: int = 10,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ema: AveragedModel | None = None if ema_decay is None else build_ema(model, ema_decay)
        self.skipped = 0
        self._skipped_in_row = 0
        self._wrapped = _distribute(model, device)
        self._device = device
        self._precision = precision
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._accumulate = accumulate
        self._clipper = clipper
        self._norm_type = norm_type
        self._max_nonfinite = max_nonfinite
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> TrainStep:
        """Build the training step that `SOLVER` describes.

        Args:
            cfg: The run's config.
            model: The model, on its device and in training mode.

        Returns:
            The training step.

        Raises:
            ConfigError: The model has SyncBatchNorms, and is trained on CPUs in a process group.
        """
        _require_gpus_for_sync_norms(cfg, model)
        solver = cfg.SOLVER
        return cls(
            model,
            build_optimizer(cfg, model),
            device=torch.device(cfg.MODEL.DEVICE),
            precision=solver.AMP.PRECISION if solver.AMP.ENABLED else "fp32",
            accumulate=solver.ACCUMULATE_STEPS,
            clipper=build_gradient_clipper(cfg),
            norm_type=solver.CLIP_GRADIENTS.NORM_TYPE,
            ema_decay=solver.EMA.DECAY if solver.EMA.ENABLED else None,
            max_nonfinite=solver.MAX_NONFINITE_STEPS,
        )

    @property
    def evaluated_model(self) -> nn.Module:
        """The model to evaluate and save as `model`: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def __call__(self, batches: Iterator[Any], *, stop_requested: Callable[[], bool] = lambda: False) -> StepReport:
        """Train on the next batches.

        Args:
            batches: Iterator with at least `accumulate` more batches.
            stop_requested: Returns whether this process should stop. The report combines the answers of all processes.

        Returns:
            Losses, gradient norm and data time of the iteration.

        Raises:
            NumericError: If losses or gradients were not finite in too many iterations in a row.
        """
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        data_seconds = 0.0
        for number in range(1, self._accumulate + 1):
            start = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - start
            with self._no_gradient_sync(unless=number == self._accumulate):
                with autocast(self._device, self._precision):
                    losses = self._wrapped(batch)
                    loss = torch.stack(list(losses.values())).sum() / self._accumulate
                self._scaler.scale(loss).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach().float() / self._accumulate
        self._scaler.unscale_(self.optimizer)
        norm = total_gradient_norm(self._parameters, self._norm_type)
        report = self._report(totals, norm, data_seconds, stop_requested())
        self._update(report, norm)
        return report

    def _report(self, losses: dict[str, Tensor], norm: Tensor, data_seconds: float, stop: bool) -> StepReport:
        # One all-reduce covers the losses, whether they are finite, and stop requests. Gradients are already averaged.
        values = torch.stack([*losses.values(), torch.full((), float(stop), device=self._device)])
        if (world_size := comm.get_world_size()) > 1:
            torch.distributed.all_reduce(values)
            values /= world_size
        *means, stops, norm_value = torch.cat([values, norm.float().reshape(1)]).tolist()
        return StepReport(dict(zip(losses, means, strict=True)), norm_value, data_seconds, stops > 0)

    def _update(self, report: StepReport, norm: Tensor) -> None:
        is_finite = all(map(math.isfinite, [*report.losses.values(), report.gradient_norm]))
        if is_finite:
            if self._clipper is not None:
                self._clipper(self._parameters, norm)
            self._scaler.step(self.optimizer)
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        scale = self._scaler.get_scale()
        self._scaler.update()
        # Loss scaling finds its factor by overflowing, so an overflow only counts once the factor is down to 1.
        is_scaling = 1 < self._scaler.get_scale() < scale
        if is_finite:
            self._skipped_in_row = 0
            return
        self.skipped += 1
        self._skipped_in_row += not is_scaling
        if self._skipped_in_row > self._max_nonfinite:
            raise NumericError(
                f"The loss or its gradient was NaN or infinite in {self._skipped_in_row} iterations in a row (last: "
                f"{report.losses}, gradient norm {report.gradient_norm}). Lower SOLVER.BASE_LR, warm up longer, clip "
                "with SOLVER.CLIP_GRADIENTS, or use bf16 instead of fp16."
            )

    def _no_gradient_sync(self, *, unless: bool) -> AbstractContextManager[Any]:
        if unless or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def check_finite(self) -> None:
        """Check that the weights and their moving average are finite.

        The optimizer state needs no check: a gradient whose square overflows has an infinite norm and is skipped.

        Raises:
            NumericError: If a tensor contains NaN or infinity. The message names the tensor.
        """
        for model in {self.model, self.evaluated_model}:
            check_finite(model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iterations depend on.

        Returns:
            A dictionary with `model` (the weights to evaluate), `optimizer`, `optimizer_name`, `scaler`, `skipped` and
            `skipped_in_row`. With a moving average, also `training_model` (the weights being trained) and
            `ema_updates`.
        """
        state = {
            "model": self.evaluated_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": type(self.optimizer).__name__,
            "scaler": self._scaler.state_dict(),
            "skipped": self.skipped,
            "skipped_in_row": self._skipped_in_row,
        }
        if self.ema is not None:
            state |= {"training_model": self.model.state_dict(), "ema_updates": int(self.ema.n_averaged)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        A run with a moving average can resume from a state without one, and vice versa. The optimizer keeps the
        settings that it was built with.

        Args:
            state: The result of `state_dict`.

        Raises:
            RuntimeError, ValueError, KeyError: If the state belongs to a different model or optimizer. A
                `CheckpointError` is a `ValueError`.
        """
        name = type(self.optimizer).__name__
        if state.get("optimizer_name", name) != name:
            raise ValueError(f"the optimizer is {state['optimizer_name']}, expected {name}")
        self.model.load_state_dict(state.get("training_model", state["model"]))
        if self.ema is not None:
            self.ema.module.load_state_dict(state["model"])
            self.ema.n_averaged.fill_(state.get("ema_updates", 0))
        settings = [{key: value for key, value in g.items() if key != "params"} for g in self.optimizer.param_groups]
        load_optimizer(self.optimizer, state["optimizer"])
        for group, built in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(built)
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.skipped, self._skipped_in_row = state["skipped"], state["skipped_in_row"]

    def sync_average(self) -> None:
        """Reset the moving average to the model's weights, after pretrained weights were loaded."""
        if self.ema is not None:
            self.ema.module.load_state_dict(self.model.state_dict())


def _require_gpus_for_sync_norms(cfg: CfgNode, model: nn.Module) -> None:
    # PyTorch would refuse the first batch, even if the group has one process.
    if not dist.is_initialized() or torch.device(cfg.MODEL.DEVICE).type != "cpu":
        return
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        keys = [key for key, value in leaves(cfg) if value == "SyncBN"]
        raise ConfigError(
            f"{listed(keys)} = SyncBN: PyTorch computes it on CPUs only in a single process. Train on GPUs, start one "
            "process without torchrun, or set the value to naiveSyncBN_N, which has the same weights."
        )


def _distribute(model: nn.Module, device: torch.device) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    place = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    return distribute(model, place, broadcast_buffers=False)
