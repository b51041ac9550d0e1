"""One training iteration: batches, losses, gradients, optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pvt_det.checkpoint import check_finite
from pvt_det.errors import NumericError
from pvt_det.solver.build import (
    GradientClipper,
    build_gradient_clipper,
    build_optimizer,
    total_gradient_norm,
)
from pvt_det.solver.ema import build_ema
from pvt_det.solver.state import load_optimizer
from pvt_det.utils.precision import autocast


@dataclass(frozen=True)
class StepReport:
    """What one iteration gave, the same on every process.

    Attributes:
        losses: Every loss of the model, averaged over batches and processes.
        gradient_norm: Norm over all gradients, before clipping.
        data_seconds: Time that this process waited for its batches.
        stop: Whether any process asked to stop.
    """

    losses: dict[str, float]
    gradient_norm: float
    data_seconds: float
    stop: bool


class TrainStep:
    """Trains a model by one optimizer step over `accumulate` batches at a time.

    An iteration whose loss or gradient is NaN or infinite, on any process, changes no weight and is counted; too many
    in a row end the run.

    Args:
        model: Takes a batch, gives a dictionary of scalar losses; on its device, in training mode.
        optimizer: Over the model's parameters.
        device: Where the model is.
        precision: Number format of autocast, "bf16" or "fp16", or "fp32" for none. With fp16, losses are scaled.
        accumulate: Batches of one step.
        clipper: Changes the gradients before the optimizer sees them.
        norm_type: The norm that is reported and clipped by.
        ema_decay: Decay of the average of the weights, or None for no average.
        max_nonfinite: So many skipped iterations in a row are borne.
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
        """Build the step that `SOLVER` describes."""
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
        """The model to evaluate and to hand on: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def __call__(self, batches: Iterator[Any], *, asked_to_stop: Callable[[], bool] = lambda: False) -> StepReport:
        """Train on the next batches.

        Args:
            batches: Gives at least `accumulate` more.
            asked_to_stop: Whether this process was asked to stop; the report says whether any was.

        Raises:
            NumericError: Losses or gradients were not finite too many times in a row.
        """
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        data_seconds = 0.0
        for number in range(1, self._accumulate + 1):
            start = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - start
            with self._gradients_kept_local(unless=number == self._accumulate):
                with autocast(self._device, self._precision):
                    losses = self._wrapped(batch)
                    loss = torch.stack(list(losses.values())).sum() / self._accumulate
                self._scaler.scale(loss).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach().float() / self._accumulate
        self._scaler.unscale_(self.optimizer)
        norm = total_gradient_norm(self._parameters, self._norm_type)
        report = self._report(totals, norm, data_seconds, asked_to_stop())
        self._update(report, norm)
        return report

    def _report(self, losses: dict[str, Tensor], norm: Tensor, data_seconds: float, stop: bool) -> StepReport:
        # One exchange serves the losses, their finiteness and the wish to stop. Gradients are averaged already.
        numbers = torch.stack([*losses.values(), torch.full((), float(stop), device=self._device)])
        if (world_size := comm.get_world_size()) > 1:
            torch.distributed.all_reduce(numbers)
            numbers /= world_size
        *means, stops, norm_value = torch.cat([numbers, norm.float().reshape(1)]).tolist()
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
        # Overflow of the gradients is how loss scaling finds its factor; nothing is wrong until that is small.
        is_scaling = 1 < self._scaler.get_scale() < scale
        if is_finite:
            self._skipped_in_row = 0
            return
        self.skipped += 1
        self._skipped_in_row += not is_scaling
        if self._skipped_in_row > self._max_nonfinite:
            raise NumericError(
                f"The loss or its gradient was NaN or infinite in {self._skipped_in_row} iterations in a row (now "
                f"{report.losses}, gradient norm {report.gradient_norm}). Lower SOLVER.BASE_LR, warm up longer, clip "
                "with SOLVER.CLIP_GRADIENTS, or try bf16 instead of fp16."
            )

    def _gradients_kept_local(self, *, unless: bool) -> AbstractContextManager[Any]:
        if unless or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def check_finite(self) -> None:
        """Check the weights, and their average, before they are saved or handed on.

        The optimizer's state needs no check: a gradient whose square overflows has an infinite norm, and is skipped.

        Raises:
            NumericError: One of them is NaN or infinite; names it.
        """
        for model in {self.model, self.evaluated_model}:
            check_finite(model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iterations depend on.

        Keys: `model`, the weights to evaluate; `training_model`, those that are trained, only where an average is
        kept; `ema_updates`, `optimizer`, `optimizer_name`, `scaler`, `skipped`, `skipped_in_row`.
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
        """Put back what `state_dict` gave.

        A run with an average can go on from a state without one, and the other way round. The optimizer keeps the
        settings that it was built with.

        Raises:
            RuntimeError, ValueError, KeyError: The state is of another model or optimizer (`CheckpointError` is one).
        """
        name = type(self.optimizer).__name__
        if state.get("optimizer_name", name) != name:
            raise ValueError(f"its optimizer is {state['optimizer_name']}, not {name}")
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
        """Start the average at the model's weights, after these were loaded from elsewhere."""
        if self.ema is not None:
            self.ema.module.load_state_dict(self.model.state_dict())


def _distribute(model: nn.Module, device: torch.device) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    device_ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
