"""A classification run from its options: builds model, data and optimizer, then trains or evaluates."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.data import Mixup
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pvt_det.checkpoint import CheckpointStore, write_atomically
from pvt_det.classification.card import write_card
from pvt_det.classification.evaluate import Accuracy, evaluate
from pvt_det.classification.options import (
    CLASSES_NAME,
    OPTIONS_NAME,
    Options,
    check_same_run,
    dump_classes,
    dump_options,
)
from pvt_det.classification.results import write_results
from pvt_det.classification.trainer import CLASSES_KEY, Parts, Trainer
from pvt_det.data.imagenet.folders import ImageSource, open_images
from pvt_det.data.imagenet.loader import (
    EvalImages,
    TrainImages,
    TrainSampler,
    build_eval_loader,
    build_train_loader,
    derive_seed,
)
from pvt_det.data.imagenet.transforms import Augmentation, DeviceInput, EvalTransform, TrainTransform
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.models import create_model
from pvt_det.solver.classification import build_optimizer, build_schedule
from pvt_det.utils.distributed import Process
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.paths import file_fault, make_folder
from pvt_det.utils.precision import autocast
from pvt_det.utils.rng import seed_all
from pvt_det.utils.signals import StopRequest
from pvt_det.utils.text import listed
from pvt_det.weights import load_pretrained
from pvt_det.weights.reader import read_file

# Beside the results of a training in the same output folder, which stay.
EVALUATION_FOLDER = "evaluation"
_log = logging.getLogger(__name__)


def train(options: Options, process: Process, resume_command: str) -> float:
    """Train; returns the best top-1 in percent.

    Args:
        options: Of the run.
        process: This process.
        resume_command: What to type to go on after an interruption, for messages.

    Raises:
        PvtDetError: Of the kinds that `Trainer.train`, `open_images` and `CheckpointStore` raise, or
            `ConfigError` where options do not fit the data, the folder or the processes.
    """
    output = Path(options.output)
    make_folder(output)
    with FolderLock(output) if process.is_main_process else nullcontext(), StopRequest() as stop:
        state = _saved_state(options)
        images, validation = _open_data(options, process)
        trainer = Trainer(options, build_parts(options, process, images, validation), process, stop, resume_command)
        if state is not None:
            _check_classes(state["classes"], images, f"the run in {output}")
            trainer.load(state)
            _log.info("Going on in epoch %d, after update %d", trainer.progress.epoch, trainer.update)
        elif process.is_main_process:
            write_atomically(output / OPTIONS_NAME, dump_options(options))
            write_atomically(output / CLASSES_NAME, dump_classes(images.classes))
        _describe(options, process, images, validation)
        try:
            best = trainer.train()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"out of memory with {_batch(options, process)} images in a process: give --accumulate-steps "
                f"{2 * options.accumulate_steps} (the same recipe), or --checkpoint-stages 1,2."
            ) from error
        if process.is_main_process:
            progress = trainer.progress
            write_results(output, options, trainer.parts.model, validation, progress.best_top1, progress.best_top5)
            write_card(options, images, validation)
        return best


def evaluate_only(options: Options, process: Process) -> Accuracy:
    """Evaluate `options.weights` on the validation images, and write `results.json` into the output's `evaluation/`.

    Raises:
        CheckpointError: The weights do not fit the model, or have no classifier.
        ConfigError: The output folder cannot be made or written in.
        DataError: The images cannot be read, or are of other classes than the weights.
    """
    make_folder(Path(options.output) / EVALUATION_FOLDER)
    classes = _classes_of(options.weights)
    with process.main_first():
        images = open_images(options.data, "val", classes, options.val_labels or None)
    model = create_model(options.model, len(images.classes), img_size=options.img_size)
    report = load_pretrained(model, options.weights)
    if report.new:
        raise CheckpointError(
            f"{options.weights}: has no classifier for the {len(images.classes)} classes of {options.data} "
            f"({', '.join(chain.from_iterable(report.new.values()))}). Give weights trained on these classes."
        )
    accuracy = _evaluation(options, process, images)(model.to(process.device), lambda batch: None)
    if process.is_main_process:
        write_results(Path(options.output) / EVALUATION_FOLDER, options, model, images, accuracy.top1, accuracy.top5)
    return accuracy


def build_parts(options: Options, process: Process, images: ImageSource, validation: ImageSource) -> Parts:
    """Everything that a `Trainer` needs.

    Raises:
        ConfigError: The batch size does not divide into the processes, or is larger than an epoch.
    """
    batch_size, pin = _batch(options, process), process.device.type == "cuda"
    sampler = TrainSampler(len(images), options.repeats, options.seed, process.rank, process.world_size)
    transform = TrainTransform(
        options.img_size,
        Augmentation(
            crop_scale=(options.crop_scale, 1.0),
            flip=options.flip,
            rand_augment=options.rand_augment,
            color_jitter=options.color_jitter,
            interpolation=options.interpolation,
        ),
    )
    dataset = TrainImages(images, transform, options.seed)
    loader = build_train_loader(dataset, sampler, batch_size, _workers(options), pin)
    updates = len(loader) // options.accumulate_steps
    if updates == 0:
        raise ConfigError(
            f"batch_size = {options.batch_size} exceeds the {len(sampler) * process.world_size} images of an epoch: "
            "lower --batch-size."
        )
    model = _build_model(options, process, len(images.classes))
    optimizer = build_optimizer(
        model, options.scaled_lr(), options.weight_decay, (options.beta1, options.beta2), options.eps
    )
    return Parts(
        model=model,
        ema=_build_ema(model, options.ema_decay),
        optimizer=optimizer,
        schedule=build_schedule(
            optimizer,
            epochs=options.epochs,
            updates_per_epoch=updates,
            warmup_epochs=options.warmup_epochs,
            warmup_lr=options.warmup_lr,
            min_lr=options.min_lr,
        ),
        scaler=torch.amp.GradScaler(process.device.type, enabled=options.amp == "fp16"),
        autocast=_autocast(options, process),
        mixup=_build_mixup(options, len(images.classes)),
        prepare=DeviceInput(process.device, options.erase_prob, options.erase_mode, options.channels_last),
        images=images,
        sampler=sampler,
        loader=loader,
        evaluate=_evaluation(options, process, validation),
    )


def _batch(options: Options, process: Process) -> int:
    """Images of one batch in one process."""
    parts = process.world_size * options.accumulate_steps
    size, rest = divmod(options.batch_size, parts)
    mixed = bool(options.mixup or options.cutmix)
    if rest or size == 0 or (mixed and size % 2):
        even = ", each of an even number of images for mixup and cutmix" if mixed else ""
        raise ConfigError(
            f"batch_size = {options.batch_size} does not divide into {parts} batches ({process.world_size} processes, "
            f"{options.accumulate_steps} accumulated){even}: change --batch-size or --accumulate-steps."
        )
    return size


def _workers(options: Options) -> int:
    """Data loader processes: no more than there are cores."""
    return min(options.workers, len(os.sched_getaffinity(0)))


def _open_data(options: Options, process: Process) -> tuple[ImageSource, ImageSource]:
    if not options.data:
        raise ConfigError("give the folder with the images: --data DIR.")
    # The main process looks up shards and stores what it found; the others read that.
    with process.main_first():
        images = open_images(options.data, "train")
        validation = open_images(options.data, "val", images.classes, options.val_labels or None)
    return images, validation


def _saved_state(options: Options) -> dict[str, Any] | None:
    """The state to resume from, or None at the start of a run."""
    latest = CheckpointStore(Path(options.output)).latest()
    if latest is None:
        return None
    if not options.resume:
        raise ConfigError(f"{options.output}: holds a run already. Give --resume auto to go on, or another --output.")
    state = read_file(latest)
    if not isinstance(state, dict) or not {"options", "progress", "interval"} <= state.keys():
        raise CheckpointError(f"{latest}: is no checkpoint of a classification run. Give another --output.")
    check_same_run(state["options"], options)
    return state


def _build_model(options: Options, process: Process, num_classes: int) -> nn.Module:
    seed_all(derive_seed(options.seed))
    model = create_model(options.model, num_classes, options.drop_path_rate, options.img_size)
    model.checkpoint_stages = options.stages()
    # Also where only one of the device's libraries would differ: the bits of a resumed run shall be the same.
    torch.use_deterministic_algorithms(options.deterministic, warn_only=True)
    model.to(process.device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    if options.compile:
        model.compile()
    return model


def _build_ema(model: nn.Module, decay: float) -> AveragedModel | None:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


def _build_mixup(options: Options, num_classes: int) -> Mixup | None:
    if not (options.mixup or options.cutmix):
        return None
    return Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        prob=options.mix_prob,
        switch_prob=options.mix_switch_prob,
        label_smoothing=options.label_smoothing,
        num_classes=num_classes,
    )


def _autocast(options: Options, process: Process) -> Callable[[], torch.autocast]:
    return functools.partial(autocast, process.device, "fp32" if options.amp == "none" else options.amp)


def _evaluation(
    options: Options, process: Process, images: ImageSource
) -> Callable[[nn.Module, Callable[[int], None]], Accuracy]:
    """A function that evaluates a network on `images`, with a check for a stop before each batch."""
    transform = EvalTransform(options.img_size, options.crop_pct, options.interpolation)
    loader = build_eval_loader(
        EvalImages(images, transform, options.img_size),
        options.eval_batch_size,
        _workers(options),
        process.device.type == "cuda",
        process.rank,
        process.world_size,
    )
    prepare = DeviceInput(process.device, channels_last=options.channels_last)

    def run(network: nn.Module, check_stop: Callable[[int], None]) -> Accuracy:
        return evaluate(
            network,
            loader,
            images,
            prepare,
            _autocast(options, process),
            process,
            max_broken=options.max_broken,
            check_stop=check_stop,
        )

    return run


def _classes_of(source: str) -> list[str] | None:
    """The class index in a weight file that this package wrote, or None."""
    path = Path(source)
    if path.suffix != ".safetensors" or file_fault(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CLASSES_KEY)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is no sound .safetensors file ({error}).") from error
    return None if text is None else json.loads(text)


def _check_classes(saved: Sequence[str], images: ImageSource, what: str) -> None:
    if tuple(saved) != tuple(images.classes):
        raise DataError(
            f"{what} was trained on the classes {listed(saved)}, the images have {listed(images.classes)}: give the "
            "same --data."
        )


def _describe(options: Options, process: Process, images: ImageSource, validation: ImageSource) -> None:
    if process.is_main_process:
        if _workers(options) < options.workers:
            _log.info("workers lowered from %d to %d, the cores here.", options.workers, _workers(options))
        _log.info(
            "%s on %d training and %d validation images of %d classes: %d processes on %s, %d images each a batch, %d "
            "batches an update, learning rate %.3g",
            options.model,
            len(images),
            len(validation),
            len(images.classes),
            process.world_size,
            process.device.type,
            _batch(options, process),
            options.accumulate_steps,
            options.scaled_lr(),
        )
