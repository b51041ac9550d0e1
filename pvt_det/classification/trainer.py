"""The classification training loop.

Nothing random hangs on what ran before: every batch is preceded by a seed of its own, made from (seed, epoch, place,
process). So a checkpoint holds no random states, and a run that resumes from it goes on bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from pvt_det.checkpoint import CheckpointStore, check_finite
from pvt_det.classification.evaluate import Accuracy, report_broken
from pvt_det.classification.log import RunLog
from pvt_det.classification.options import Options
from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.data.imagenet.loader import Batch, TrainSampler, derive_seed
from pvt_det.data.imagenet.transforms import DeviceInput
from pvt_det.errors import Interrupted, NumericError
from pvt_det.solver.state import load_optimizer
from pvt_det.utils.distributed import Process
from pvt_det.utils.rng import seed_all
from pvt_det.utils.signals import StopRequest
from pvt_det.weights import save_safetensors

# Entry of a weight file's metadata: the class names in order, as JSON.
CLASSES_KEY = "classes"
LAST_NAME, BEST_NAME = "model_last.pth", "best.safetensors"
# Processes agree on stopping every so many updates or evaluation batches.
_AGREE_EVERY = 10
_log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a run is made of; `classification_run` builds them from the options.

    Attributes:
        model: The network, bare.
        ema: Moving average of its weights, or None.
        optimizer: Over the network's parameters.
        schedule: Sets the optimizer's learning rates, update by update.
        scaler: Of losses; disabled but for fp16.
        autocast: Makes the forward pass's number format.
        mixup: Mixes a batch of images and labels, or None.
        prepare: Brings images to the device, normalises and erases.
        images: Training images.
        sampler: Their order.
        loader: Their batches.
        evaluate: Evaluates a network; gets a function that it calls with the number of each batch.
    """

    model: nn.Module
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    schedule: CosineLRScheduler
    scaler: torch.amp.GradScaler
    autocast: Callable[[], torch.autocast]
    mixup: Mixup | None
    prepare: DeviceInput
    images: ImageSource
    sampler: TrainSampler
    loader: DataLoader
    evaluate: Callable[[nn.Module, Callable[[int], None]], Accuracy]


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        epoch: The current epoch, from 0.
        step: Updates done in it.
        best_top1: Best top-1 so far, in percent; -1 before the first evaluation.
        best_top5: Top-5 of the same weights.
        broken: Broken images met, by number.
    """

    epoch: int = 0
    step: int = 0
    best_top1: float = -1.0
    best_top5: float = -1.0
    broken: list[int] = dataclasses.field(default_factory=list)


class Trainer:
    """Trains to the end, to an error, or until asked to stop.

    Args:
        options: Of the run.
        parts: Model, data and the rest.
        process: This process.
        stop: The wish to stop.
        resume_command: What to type to go on, for messages.
    """

    def __init__(
        self, options: Options, parts: Parts, process: Process, stop: StopRequest, resume_command: str
    ) -> None:
        self.options, self.parts, self.process = options, parts, process
        self.progress = Progress()
        self._stop, self._resume_command = stop, resume_command
        self._store = CheckpointStore(Path(options.output))
        self._steps = len(parts.loader) // options.accumulate_steps
        self._loss = nn.CrossEntropyLoss(label_smoothing=0.0 if parts.mixup else options.label_smoothing)
        # Of the current logging interval: sum of the updates' losses, and number of updates.
        self._loss_sum, self._loss_count = torch.zeros((), device=process.device), 0
        # Since the last log line: seconds spent waiting for batches, when it was, and updates.
        self._waited, self._since, self._timed = 0.0, time.perf_counter(), 0
        self._saved_at = time.perf_counter()
        self._wrapped: nn.Module = parts.model
        if process.world_size > 1:
            self._wrapped = DistributedDataParallel(
                parts.model, device_ids=[process.device] if process.device.type == "cuda" else None
            )

    @property
    def update(self) -> int:
        """Updates done in the whole run."""
        return self.progress.epoch * self._steps + self.progress.step

    def train(self) -> float:
        """Train and evaluate; returns the best top-1 in percent.

        Raises:
            Interrupted: A signal asked to stop; the state is saved.
            NumericError: The loss is not finite.
            DataError: Too many images are broken.
        """
        output = Path(self.options.output) if self.process.is_main_process else None
        self.parts.model.train()
        with RunLog(output, self.options.epochs * self._steps, self.update) as log:
            while self.progress.epoch < self.options.epochs:
                self._train_epoch(log)
                self._evaluate(log)
                self.progress.epoch, self.progress.step = self.progress.epoch + 1, 0
                self.save()
        return self.progress.best_top1

    def _train_epoch(self, log: RunLog) -> None:
        accumulate, progress = self.options.accumulate_steps, self.progress
        if progress.step < self._steps:
            batch_size = self.parts.loader.batch_size
            assert batch_size is not None
            self.parts.sampler.set_position(progress.epoch, progress.step * accumulate * batch_size)
            batches = iter(self.parts.loader)
            self._waited, self._since, self._timed = 0.0, time.perf_counter(), 0
            while progress.step < self._steps:
                self._update(batches)
                progress.step += 1
                log.advance()
                if self.update % self.options.log_every == 0 or progress.step == self._steps:
                    self._log_interval(log)
                if self.update % _AGREE_EVERY == 0 or self.process.world_size == 1:
                    self._check_stop()
                self._save_if_due()

    def _update(self, batches: Iterator[Batch]) -> None:
        """One optimizer step over `accumulate_steps` batches."""
        parts, accumulate = self.parts, self.options.accumulate_steps
        parts.schedule.step_update(self.update)
        for part in range(accumulate):
            batch = self._next(batches)
            place = self.progress.step * accumulate + part
            seed_all(derive_seed(self.options.seed, self.progress.epoch, place, self.process.rank, 1))
            # Not waited for: a GPU would be done with the update before this one first.
            images = parts.prepare(batch.images)
            labels = batch.labels.to(self.process.device, non_blocking=True)
            if parts.mixup:
                images, labels = parts.mixup(images, labels)
            with self._no_sync() if part + 1 < accumulate else nullcontext():
                with parts.autocast():
                    loss = self._loss(self._wrapped(images), labels) / accumulate
                parts.scaler.scale(loss).backward()
            self._loss_sum += loss.detach()
        if self.options.clip_grad:
            parts.scaler.unscale_(parts.optimizer)
            nn.utils.clip_grad_norm_(parts.model.parameters(), self.options.clip_grad)
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        parts.optimizer.zero_grad(set_to_none=True)
        if parts.ema:
            parts.ema.update_parameters(parts.model)
        self._loss_count += 1
        self._timed += 1

    def _next(self, batches: Iterator[Batch]) -> Batch:
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        if new := sorted(set(batch.broken.tolist()) - set(self.progress.broken)):
            self.progress.broken += new
            if self.process.world_size == 1:
                report_broken(self.progress.broken, self.parts.images, self.options.max_broken, True)
        return batch

    def _no_sync(self) -> AbstractContextManager:
        return self._wrapped.no_sync() if isinstance(self._wrapped, DistributedDataParallel) else nullcontext()

    def _log_interval(self, log: RunLog) -> None:
        loss = self.process.sum(self._loss_sum).item() / (self._loss_count * self.process.world_size)
        if not math.isfinite(loss):
            raise NumericError(
                f"the loss is {loss} in the updates up to {self.update} (epoch {self.progress.epoch}). Lower --lr, set "
                "--clip-grad 1, or use --amp bf16 or none; the checkpoint before it is sound."
            )
        if self.process.world_size > 1:
            self.progress.broken = sorted(set(chain.from_iterable(self.process.gather(self.progress.broken))))
            report_broken(
                self.progress.broken, self.parts.images, self.options.max_broken, self.process.is_main_process
            )
        seconds = time.perf_counter() - self._since
        log.train(
            {
                "epoch": self.progress.epoch,
                "update": self.update,
                "loss": loss,
                "lr": self.parts.optimizer.param_groups[0]["lr"],
                "images_per_s": self._timed * self.options.batch_size / seconds,
                "waiting": self._waited / seconds,
            }
        )
        self._loss_sum.zero_()
        self._loss_count = 0
        self._waited, self._since, self._timed = 0.0, time.perf_counter(), 0

    def _evaluate(self, log: RunLog) -> None:
        done = self.progress.epoch + 1
        if done % self.options.eval_every and done < self.options.epochs:
            return
        network = self.parts.ema.module if self.parts.ema else self.parts.model
        # Saved before, so that a stop in the evaluation costs no more than the evaluation.
        self.save()
        result = self.parts.evaluate(network, self._check_stop_at)
        if result.top1 > self.progress.best_top1:
            self.progress.best_top1, self.progress.best_top5 = result.top1, result.top5
            if self.process.is_main_process:
                self._save_best(network, result)
        log.evaluation(
            {
                "epoch": self.progress.epoch,
                "update": self.update,
                "top1": result.top1,
                "top5": result.top5,
                "val_loss": result.loss,
                "best_top1": self.progress.best_top1,
            }
        )

    def _check_stop_at(self, batch: int) -> None:
        if self.process.world_size == 1:
            self._check_stop()

    def _check_stop(self) -> None:
        if self.process.any(self._stop.signal_name is not None):
            self.save()
            # A launcher ends the other processes once one has ended: not while the main one still writes.
            self.process.barrier()
            raise Interrupted(
                f"{self._stop.signal_name or 'a signal'} in epoch {self.progress.epoch}, after update {self.update}. "
                f"Go on with: {self._resume_command}"
            )

    def _save_if_due(self) -> None:
        if self.process.is_main_process and time.perf_counter() - self._saved_at > 60 * self.options.save_minutes:
            self.save()

    def save(self) -> None:
        """Write the state to the output folder, in the main process.

        Raises:
            NumericError: The weights are not finite; what was saved before stays.
        """
        self._saved_at = time.perf_counter()
        check_finite(self.parts.model.state_dict())
        if self.process.is_main_process:
            self._store.save(LAST_NAME, self.state(), self.update)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors, numbers, texts and containers of them."""
        parts = self.parts
        return {
            "model": parts.model.state_dict(),
            "ema": parts.ema.state_dict() if parts.ema else None,
            "optimizer": parts.optimizer.state_dict(),
            "scaler": parts.scaler.state_dict(),
            "progress": dataclasses.asdict(self.progress),
            "interval": {"loss_sum": self._loss_sum, "count": self._loss_count},
            "options": dataclasses.asdict(self.options),
            "classes": list(parts.images.classes),
            "iteration": self.update,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up the state that `state` gave."""
        parts = self.parts
        parts.model.load_state_dict(state["model"])
        if parts.ema:
            parts.ema.load_state_dict(state["ema"])
        load_optimizer(parts.optimizer, state["optimizer"])
        parts.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self._loss_sum.copy_(state["interval"]["loss_sum"])
        self._loss_count = state["interval"]["count"]

    def _save_best(self, network: nn.Module, result: Accuracy) -> None:
        tensors: dict[str, Tensor] = network.state_dict()
        save_safetensors(
            Path(self.options.output) / BEST_NAME,
            tensors,
            metadata_of(self.options, self.parts.images.classes)
            | {"top1": f"{result.top1:.3f}", "top5": f"{result.top5:.3f}", "epoch": str(self.progress.epoch)},
        )


def metadata_of(options: Options, classes: Sequence[str]) -> dict[str, str]:
    """What a weight file says about itself: model, input and class index."""
    return {
        "format": "pt",
        "model": options.model,
        "img_size": str(options.img_size),
        "crop_pct": str(options.crop_pct),
        "interpolation": options.interpolation,
        CLASSES_KEY: json.dumps(list(classes), ensure_ascii=False),
    }
