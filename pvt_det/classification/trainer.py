"""The training loop of classification.

Randomness depends only on (seed, epoch, step, rank), because the random generators are seeded before every batch.
Checkpoints therefore need no generator states, and a resumed run is bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pvt_det.checkpoint import CheckpointStore, check_finite
from pvt_det.classification import build, files
from pvt_det.classification.config import TrainConfig
from pvt_det.classification.evaluator import Accuracy, accuracy_metrics, report_broken
from pvt_det.classification.metrics import MetricsWriter
from pvt_det.classification.models import build_classifier
from pvt_det.data.imagenet.folders import ImageSource, describe_images, open_images
from pvt_det.data.imagenet.loader import Batch, derive_seed
from pvt_det.errors import ConfigError, DataError, Interrupted, NumericError
from pvt_det.results import BEST, FINAL, Checkpoint
from pvt_det.run_folder import CLASSIFIER_BEST_NAME, CLASSIFIER_FINAL_NAME, CLASSIFIER_LAST_NAME, rename_old_files
from pvt_det.utils.agreement import check_agreement
from pvt_det.utils.digest import file_digest
from pvt_det.utils.distributed import Process, distribute
from pvt_det.utils.environment import CODE, code_fingerprint
from pvt_det.utils.rank_watch import count_batches
from pvt_det.utils.rng import seed_all
from pvt_det.utils.signals import StopRequest
from pvt_det.utils.text import listed

# Number of updates after which the processes check together whether to stop.
_CHECK_STOP_EVERY = 10
_TRAINING, _VALIDATION = "training images", "validation images"
logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: The current epoch, from 0.
        step: Number of updates done in the current epoch.
        best_top1: Best top-1 accuracy so far, in percent, or -1 before the first evaluation.
        best_top5: Top-5 accuracy of the same weights, in percent.
        best_update: Number of updates after which these weights were saved.
        last_top1: Top-1 accuracy of the last evaluation, in percent.
        last_top5: Top-5 accuracy of the last evaluation, in percent.
        broken: Indices of the broken training images found so far.
    """

    epoch: int = 0
    step: int = 0
    best_top1: float = -1.0
    best_top5: float = -1.0
    best_update: int = 0
    last_top1: float = -1.0
    last_top5: float = -1.0
    broken: list[int] = field(default_factory=list)


class Interval:
    """Loss and speed since the last row of metrics.

    Args:
        device: The device on which the loss is accumulated.
        loss_sum: The initial sum of losses.
        updates: Number of updates in the initial sum.

    Attributes:
        loss_sum: Sum of the losses, kept on the device to avoid synchronization.
        updates: Number of updates in the sum.
        waited: Seconds spent waiting for batches since the clock was started.
    """

    def __init__(self, device: torch.device, loss_sum: float = 0.0, updates: int = 0) -> None:
        self.loss_sum, self.updates = torch.tensor(loss_sum, device=device), updates
        self.start_clock()

    def start_clock(self) -> None:
        """Start the clock. Earlier updates do not count toward the speed."""
        self.waited, self._started, self._untimed = 0.0, time.perf_counter(), self.updates

    def speed(self) -> tuple[float, float]:
        """Return the updates per second, and the fraction of time spent waiting for batches, 0 to 1."""
        seconds = time.perf_counter() - self._started
        return (self.updates - self._untimed) / seconds, self.waited / seconds


class ClassificationTrainer:
    """Trains a classifier until the last epoch, an error, or a signal to stop.

    Subclasses may override any public method. The loop is::

        while epoch < cfg.epochs:
            for each update of the epoch:
                run_step()
                after_step()
            evaluate()

    Args:
        cfg: The config of the run. With `cfg.resume`, the last checkpoint in the output folder is loaded.
        process: This process, from `start_run`.

    Attributes:
        images: The training images.
        validation: The validation images.
        state: The model, the optimizer and the other objects that take part in training.
        progress: The current epoch and step, and the best accuracy so far.

    Raises:
        CheckpointError: The checkpoint to resume from is damaged, or does not belong to a classification run.
        ConfigError: The output folder contains another run, a value does not fit the data or the processes, or the
            processes have different data or code.
        DataError: The images cannot be read, or have different classes than the run to resume.
    """

    def __init__(self, cfg: TrainConfig, process: Process) -> None:
        self.cfg, self.process = cfg, process
        self._store = CheckpointStore(Path(cfg.output))
        # Checked first, so that an output folder of another run is rejected before the images are listed.
        saved = files.read_saved_state(cfg)
        self.images, self.validation = self.build_datasets(cfg, process)
        # Before the model is built: processes with different data or code would train a wrong model together.
        self.fingerprint = {
            _TRAINING: describe_images(self.images),
            _VALIDATION: describe_images(self.validation),
            CODE: code_fingerprint(),
        }
        resumed = {"iteration to resume from": saved["iteration"] if saved else "none"}
        check_agreement(self.fingerprint | resumed, process.gather)
        model = self.build_model(cfg, len(self.images.classes))
        self.state = build.build_train_state(cfg, process, self.images, model)
        self._evaluator = build.build_evaluator(cfg, process, self.validation)
        self._steps = len(self.state.loader) // cfg.accumulate_steps
        self._loss = nn.CrossEntropyLoss(label_smoothing=0.0 if self.state.mixup else cfg.label_smoothing)
        self._wrapped = _wrap(model, process)
        self.progress, self._interval = Progress(), Interval(process.device)
        self._stop = StopRequest("update" if process.is_main_process else "")
        self._saved_at = time.perf_counter()
        self._metrics: MetricsWriter | None = None
        self._is_resumed = saved is not None
        if saved is not None:
            self.load_state_dict(saved)
        self._resumed_after = self.update

    @classmethod
    def build_datasets(cls, cfg: TrainConfig, process: Process) -> tuple[ImageSource, ImageSource]:
        """Open the training and validation images. Override this method to train on your own kind of images.

        Args:
            cfg: The config of the run.
            process: This process and its device.

        Returns:
            The training images and the validation images.

        Raises:
            ConfigError: `cfg.data` is empty.
            DataError: The images cannot be read.
        """
        if not cfg.data:
            raise ConfigError("The folder of the images is missing. Add --data DIR.")
        # The main process indexes the shards and saves the index; the others read it.
        with process.main_first():
            images = open_images(cfg.data, "train")
            validation = open_images(cfg.data, "val", images.classes, cfg.val_labels or None)
        return images, validation

    @classmethod
    def build_model(cls, cfg: TrainConfig, num_classes: int) -> nn.Module:
        """Build the network. Override this method to train a different one.

        Args:
            cfg: The config of the run.
            num_classes: Number of classes.

        Returns:
            A network on the CPU that maps `N×3×H×W` images to `N×num_classes` logits. Its random weights depend only
            on the seed.
        """
        seed_all(derive_seed(cfg.seed))
        return build_classifier(cfg, num_classes)

    @property
    def update(self) -> int:
        """Number of updates done in the whole run."""
        return self.progress.epoch * self._steps + self.progress.step

    def train(self) -> float:
        """Train and evaluate.

        Returns:
            The best top-1 accuracy, in percent.

        Raises:
            ConfigError: The device is out of memory.
            DataError: Too many images are broken.
            Interrupted: The run received a signal to stop. The training state is saved.
            NumericError: The loss is not finite.
        """
        self._begin()
        self.state.model.train()
        try:
            with self._stop, self._open_metrics():
                while self.progress.epoch < self.cfg.epochs:
                    self._train_epoch()
                    if self._is_evaluation_due():
                        self.evaluate()
                    self.progress.epoch, self.progress.step = self.progress.epoch + 1, 0
                    self.save()
        except torch.OutOfMemoryError as error:
            raise ConfigError(self._out_of_memory()) from error
        self._write_weights(CLASSIFIER_FINAL_NAME, self.cfg.epochs - 1)
        return self.progress.best_top1

    def run_step(self, batches: Iterator[Batch]) -> None:
        """Run one optimizer step on `accumulate_steps` batches.

        Args:
            batches: The batches of this process.
        """
        state, accumulate = self.state, self.cfg.accumulate_steps
        state.schedule.step_update(self.update)
        for part in range(accumulate):
            batch = self._next(batches)
            position = self.progress.step * accumulate + part
            seed_all(derive_seed(self.cfg.seed, self.progress.epoch, position, self.process.rank, 1))
            with self._no_sync() if part + 1 < accumulate else nullcontext():
                loss = self._batch_loss(batch) / accumulate
                state.scaler.scale(loss).backward()
            self._interval.loss_sum += loss.detach()
        if self.cfg.clip_grad:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self.cfg.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema:
            state.ema.update_parameters(state.model)
        self._interval.updates += 1

    def after_step(self) -> None:
        """Log, save and stop if due. Called after every update, in every process."""
        if self._metrics is not None:
            self._metrics.advance(self.update)
        if self.update % self.cfg.log_every == 0 or self.progress.step == self._steps:
            self._log_interval()
        elif self._metrics is not None and self.update == self._resumed_after + 1:
            self._metrics.show_first(self.update, self._interval.loss_sum.item() / self._interval.updates)
        if self.update % _CHECK_STOP_EVERY == 0 or self.process.world_size == 1:
            self._check_stop()
        if self.process.is_main_process and time.perf_counter() - self._saved_at > 60 * self.cfg.save_minutes:
            self.save()

    def evaluate(self) -> Accuracy:
        """Evaluate the model or its moving average, and save the weights if they are the best so far."""
        # Saved first, so that a stop during the evaluation loses only the evaluation.
        self.save()
        check_stop = self._check_stop if self.process.world_size == 1 else None
        accuracy = self._evaluator(self.state.evaluated_model, check_stop)
        self.progress.last_top1, self.progress.last_top5 = accuracy.top1, accuracy.top5
        if accuracy.top1 > self.progress.best_top1:
            self.progress.best_top1, self.progress.best_top5 = accuracy.top1, accuracy.top5
            self.progress.best_update = self.update
            top1, top5 = f"{accuracy.top1:.3f}", f"{accuracy.top5:.3f}"
            self._write_weights(CLASSIFIER_BEST_NAME, self.progress.epoch, top1=top1, top5=top5)
        if self._metrics is not None:
            self._metrics.write_evaluation(
                {
                    "epoch": self.progress.epoch,
                    "update": self.update,
                    "top1": accuracy.top1,
                    "top5": accuracy.top5,
                    "val_loss": accuracy.loss,
                    "best_top1": self.progress.best_top1,
                }
            )
        return accuracy

    def checkpoints(self) -> dict[str, Checkpoint]:
        """Return the best and the final weights of a finished run, each with its own accuracy.

        Returns:
            The checkpoints by name, "best" and "final".
        """
        progress = self.progress
        rows = {
            BEST: (CLASSIFIER_BEST_NAME, progress.best_update, progress.best_top1, progress.best_top5),
            FINAL: (CLASSIFIER_FINAL_NAME, self.update, progress.last_top1, progress.last_top5),
        }
        return {
            name: Checkpoint(file, self._digest(file), update, accuracy_metrics(top1, top5))
            for name, (file, update, top1, top5) in rows.items()
        }

    def _digest(self, name: str) -> str:
        path = Path(self.cfg.output) / name
        return file_digest(path) if path.is_file() else ""

    def save(self) -> None:
        """Write the training state to the output folder. Only the main process writes.

        Raises:
            NumericError: The weights are not finite. The previous checkpoint is kept.
        """
        self._saved_at = time.perf_counter()
        check_finite(self.state.model.state_dict())
        if self.process.is_main_process:
            self._store.save(CLASSIFIER_LAST_NAME, self.state_dict(), self.update)

    def state_dict(self) -> dict[str, Any]:
        """Return the training state: tensors, numbers, strings and containers of them."""
        return {
            **self.state.state_dict(),
            "progress": asdict(self.progress),
            "interval": {"loss_sum": self._interval.loss_sum, "count": self._interval.updates},
            "options": asdict(self.cfg),
            "classes": list(self.images.classes),
            "fingerprint": self.fingerprint,
            "iteration": self.update,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a training state.

        Args:
            state: The result of `state_dict`.

        Raises:
            DataError: The images or their classes are different.
        """
        saved, found = state["classes"], list(self.images.classes)
        if saved != found:
            raise DataError(
                f"The run in {self.cfg.output} was trained on the classes {listed(saved)}, but the images have "
                f"{listed(found)}. Use the same --data."
            )
        self._compare_fingerprint(state.get("fingerprint", {}))
        self.state.load_state_dict(state)
        self.progress = Progress(**state["progress"])
        self._interval = Interval(self.process.device, state["interval"]["loss_sum"].item(), state["interval"]["count"])

    def _compare_fingerprint(self, saved: dict[str, Any]) -> None:
        for name, now in self.fingerprint.items():
            if (before := saved.get(name, now)) == now:
                continue
            if name == _TRAINING:
                raise DataError(
                    f"The run in {self.cfg.output} was trained on the images {before}, but --data has {now}, so the "
                    "position in the data would be wrong. Use the same images, or another --output to start a new run."
                )
            logger.warning("The %s was %s and is %s. Continuing with the new one.", name, before, now)

    def _begin(self) -> None:
        """Log the model and data, and write the config of a new run. Only the main process does so."""
        if not self.process.is_main_process:
            return
        if self._is_resumed:
            rename_old_files(Path(self.cfg.output))
            logger.info("Resuming in epoch %d, after update %d.", self.progress.epoch, self.update)
        else:
            if self.cfg.resume:
                logger.info("%s holds no checkpoint to resume from. Starting from epoch 0.", self.cfg.output)
            files.write_config(Path(self.cfg.output), self.cfg, self.images.classes)
        if (workers := build.num_workers(self.cfg)) < self.cfg.workers:
            logger.info("workers lowered from %d to %d, the number of available cores.", self.cfg.workers, workers)
        logger.info(
            "%s on %d training and %d validation images of %d classes: %d processes on %s, %d images per batch, %d "
            "batches per update, learning rate %.3g.",
            self.cfg.model,
            len(self.images),
            len(self.validation),
            len(self.images.classes),
            self.process.world_size,
            self.process.device.type,
            build.batch_size_per_process(self.cfg, self.process.world_size),
            self.cfg.accumulate_steps,
            self.cfg.scaled_lr(),
        )

    def _open_metrics(self) -> AbstractContextManager[Any]:
        if self.process.is_main_process:
            self._metrics = MetricsWriter(Path(self.cfg.output), self.cfg.epochs * self._steps, self.update)
        return self._metrics or nullcontext()

    def _train_epoch(self) -> None:
        state, progress = self.state, self.progress
        if progress.step == self._steps:  # resumed after a stop during the evaluation
            return
        # Not `state.loader.batch_size`, which is None if the loader has its own sampler of batches.
        batch_size = getattr(state.loader.batch_sampler, "batch_size", None)
        assert batch_size is not None
        state.sampler.set_position(progress.epoch, progress.step * self.cfg.accumulate_steps * batch_size)
        batches = count_batches(state.loader)
        self._interval.start_clock()
        while progress.step < self._steps:
            self.run_step(batches)
            progress.step += 1
            self.after_step()

    def _next(self, batches: Iterator[Batch]) -> Batch:
        start = time.perf_counter()
        batch = next(batches)
        self._interval.waited += time.perf_counter() - start
        if new := sorted(set(batch.broken.tolist()) - set(self.progress.broken)):
            self.progress.broken += new
            if self.process.world_size == 1:
                self._report_broken()
        return batch

    def _batch_loss(self, batch: Batch) -> torch.Tensor:
        state = self.state
        # Asynchronous copies: a synchronous one would first wait for the GPU to finish the previous update.
        images = state.prepare(batch.images)
        labels = batch.labels.to(self.process.device, non_blocking=True)
        if state.mixup:
            images, labels = state.mixup(images, labels)
        with state.autocast():
            return self._loss(self._wrapped(images), labels)

    def _no_sync(self) -> AbstractContextManager:
        return self._wrapped.no_sync() if isinstance(self._wrapped, DistributedDataParallel) else nullcontext()

    def _log_interval(self) -> None:
        loss = self.process.sum(self._interval.loss_sum).item() / (self._interval.updates * self.process.world_size)
        if not math.isfinite(loss):
            raise NumericError(
                f"The loss is {loss} in the updates up to {self.update} (epoch {self.progress.epoch}). Lower --lr, set "
                "--clip-grad 1, or use --amp bf16 or none. The previous checkpoint is valid."
            )
        if self.process.world_size > 1:
            self.progress.broken = sorted(set(chain.from_iterable(self.process.gather(self.progress.broken))))
            self._report_broken()
        updates_per_s, waiting = self._interval.speed()
        if self._metrics is not None:
            self._metrics.write_training(
                {
                    "epoch": self.progress.epoch,
                    "update": self.update,
                    "loss": loss,
                    "lr": self.state.optimizer.param_groups[0]["lr"],
                    "images_per_s": updates_per_s * self.cfg.batch_size,
                    "waiting": waiting,
                }
            )
        self._interval = Interval(self.process.device)

    def _report_broken(self) -> None:
        report_broken(self.progress.broken, self.images, self.cfg.max_broken, self.process.is_main_process)

    def _is_evaluation_due(self) -> bool:
        epochs_done = self.progress.epoch + 1
        return epochs_done % self.cfg.eval_every == 0 or epochs_done >= self.cfg.epochs

    def _check_stop(self) -> None:
        if self.process.any(self._stop.signal_name is not None):
            self.save()
            # A launcher stops all processes once one has exited, so wait until the main process has written.
            self.process.barrier()
            name = self._stop.signal_name or "a signal"
            raise Interrupted(f"{name} in epoch {self.progress.epoch}, after update {self.update}.")

    def _write_weights(self, name: str, epoch: int, **extra: str) -> None:
        if self.process.is_main_process:
            path, tensors = Path(self.cfg.output) / name, self.state.evaluated_model.state_dict()
            files.write_weights(path, self.cfg, self.images.classes, tensors, epoch=str(epoch), **extra)

    def _out_of_memory(self) -> str:
        size = build.batch_size_per_process(self.cfg, self.process.world_size)
        return (
            f"Out of memory with {size} images per process. Use --accumulate-steps {2 * self.cfg.accumulate_steps} "
            "(the same recipe), or --checkpoint-stages 1,2."
        )


def _wrap(model: nn.Module, process: Process) -> nn.Module:
    if process.world_size == 1:
        return model
    return distribute(model, process.device, broadcast_buffers=True)
