"""Entry points of classification for scripts and commands: train, evaluate and write reports."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pvt_det.classification.build import build_evaluator
from pvt_det.classification.card import write_card
from pvt_det.classification.config import TrainConfig, config_digest, recipe_digest
from pvt_det.classification.evaluator import Accuracy, accuracy_metrics
from pvt_det.classification.files import read_classes_from_weights
from pvt_det.classification.models import build_classifier
from pvt_det.classification.trainer import ClassificationTrainer
from pvt_det.data.imagenet.folders import ImageSource, open_images
from pvt_det.errors import CheckpointError, Interrupted
from pvt_det.models.complexity import count_gmacs, count_parameters
from pvt_det.reports.published import IMAGENET, published_classifier
from pvt_det.results import BEST, EVALUATED, Checkpoint, DataRecord, save_results
from pvt_det.run_folder import (
    CLASSIFIER_BEST_NAME,
    EVALUATION,
    EVALUATION_FOLDER,
    TRAINING,
    path_in_run,
    require_kind,
)
from pvt_det.utils.agreement import check_agreement, check_shared_folder
from pvt_det.utils.console import get_console
from pvt_det.utils.digest import file_digest, value_digest
from pvt_det.utils.distributed import Process, start_process
from pvt_det.utils.environment import environment, library_versions
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.logs import run_logging
from pvt_det.utils.paths import make_folder
from pvt_det.utils.rank_watch import missing_ranks_named
from pvt_det.utils.signals import termination_reported
from pvt_det.weights import load_pretrained
from pvt_det.weights.source import locate

_IMAGENET_CLASSES, _IMAGENET_IMAGES = 1000, 50_000
logger = logging.getLogger(__name__)


@contextmanager
def start_run(cfg: TrainConfig, resume_command: str = "the same command with --resume") -> Iterator[Process]:
    """Join the process group, create the output folder, lock it against other training runs, and log to it.

    Args:
        cfg: The config of the run.
        resume_command: The command that resumes the run, shown in the message of an interrupted run.

    Yields:
        This process and its device.

    Raises:
        ConfigError: The folder cannot be written or is used by another run, no GPU is available for this process, or
            the processes have different configs.
        Interrupted: The run received a signal to stop.
        RankError: Another process has died or hangs.
    """
    command = "" if cfg.eval_only else resume_command
    with start_process(cfg.device) as process:
        folder = _output_folder(cfg)
        require_kind(folder, EVALUATION if cfg.eval_only else TRAINING)
        make_folder(folder)
        logs, reported = run_logging(folder, process.rank, get_console()), termination_reported(command)
        with _lock(cfg, process), logs, reported, missing_ranks_named(command):
            if not cfg.eval_only:
                check_shared_folder(folder, process.rank, process.gather)
            check_agreement(cfg.shared_values() | library_versions(), process.gather)
            try:
                yield process
            except Interrupted as error:
                raise Interrupted(f"{error} Resume with: {command}" if command else str(error)) from error


def train(cfg: TrainConfig, process: Process) -> float:
    """Train a classifier, then write its results and its model card.

    Args:
        cfg: The config of the run.
        process: This process, from `start_run`.

    Returns:
        The best top-1 accuracy, in percent.

    Raises:
        PvtDetError: `ClassificationTrainer` or its `train` method raised an error.
    """
    trainer = ClassificationTrainer(cfg, process)
    best = trainer.train()
    write_reports(trainer)
    return best


def write_reports(trainer: ClassificationTrainer) -> None:
    """Write `results.json` and the model card `README.md` of a finished run. Only the main process writes.

    Args:
        trainer: The trainer, after `train` has returned.
    """
    if not trainer.process.is_main_process:
        return
    cfg = trainer.cfg
    _write_results(cfg, trainer.state.model, trainer.checkpoints(), trainer.validation, trainer.images)
    write_card(cfg, trainer.images, trainer.validation)
    logger.info("best top-1 %.2f %%: %s", trainer.progress.best_top1, Path(cfg.output) / CLASSIFIER_BEST_NAME)


def evaluate(cfg: TrainConfig, process: Process) -> Accuracy:
    """Evaluate `cfg.weights` on the validation images, and write `evaluation.json`.

    The file is in `evaluation/DATASET` in the output folder.

    Args:
        cfg: The config of the run.
        process: This process, from `start_run`.

    Raises:
        CheckpointError: The weights do not match the model, or contain no classifier.
        DataError: The images cannot be read, or have different classes than the weights.
    """
    classes = read_classes_from_weights(cfg.weights)
    with process.main_first():
        images = open_images(cfg.data, "val", classes, cfg.val_labels or None)
    model = build_classifier(cfg, len(images.classes))
    report = load_pretrained(model, cfg.weights)
    if report.new:
        raise CheckpointError(
            f"{cfg.weights} has no classifier for the {len(images.classes)} classes of {cfg.data} "
            f"({', '.join(chain.from_iterable(report.new.values()))}). Give weights trained on these classes."
        )
    accuracy = build_evaluator(cfg, process, images)(model.to(process.device))
    if process.is_main_process:
        path = locate(cfg.weights)
        metrics = accuracy_metrics(accuracy.top1, accuracy.top5)
        file = path_in_run(cfg.weights, _output_folder(cfg))
        checkpoints = {EVALUATED: Checkpoint(file, file_digest(path), None, metrics)}
        _write_results(cfg, model, checkpoints, images)
        logger.info("%s %s: %s (%s)", cfg.model, cfg.weights, accuracy, _published_top1(cfg.model))
    return accuracy


def _output_folder(cfg: TrainConfig) -> Path:
    name = f"{Path(cfg.data).resolve().name}_val"
    return Path(cfg.output) / EVALUATION_FOLDER / name if cfg.eval_only else Path(cfg.output)


def _lock(cfg: TrainConfig, process: Process) -> AbstractContextManager[Any]:
    needs_lock = process.is_main_process and not cfg.eval_only
    return FolderLock(Path(cfg.output)) if needs_lock else nullcontext()


def _published_top1(model: str) -> str:
    published = published_classifier(model)
    return f"published ImageNet-1k top-1: {published.classification['top1']} %" if published else "no published top-1"


def _write_results(
    cfg: TrainConfig,
    model: nn.Module,
    checkpoints: Mapping[str, Checkpoint],
    validation: ImageSource,
    train: ImageSource | None = None,
) -> None:
    """Write the results: model, recipe, data, environment, and the checkpoints with their accuracy in percent."""
    side = cfg.img_size
    image = torch.zeros(1, 3, side, side, device=next(model.parameters()).device)
    dataset = _dataset_name(cfg, validation)
    fields = {
        "config_file": cfg.model,
        "config_sha256": config_digest(cfg),
        "recipe_sha256": recipe_digest(cfg),
        "model": f"{cfg.model} classifier",
        "recipe": _recipe(cfg),
        "dataset": dataset,
        "parameters": count_parameters(model),
        "gmacs": f"{count_gmacs(model, image):.1f} ({side}x{side})",
        "shown": EVALUATED if cfg.eval_only else BEST,
        "seed": cfg.seed,
        "environment": environment(image.device),
    }
    data = [_record("test", dataset, cfg, validation)]
    if train is not None:
        data.append(_record("train", f"{Path(cfg.data).name}_train", cfg, train))
    save_results(_output_folder(cfg), EVALUATION if cfg.eval_only else TRAINING, checkpoints, data, fields)


def _record(role: str, dataset: str, cfg: TrainConfig, source: ImageSource) -> DataRecord:
    """Describe images by the digest of the class names, and of the name and label of each. The images are not read."""
    names = [Path(source.name(index)).name for index in range(len(source))]
    digest = value_digest([source.classes, list(zip(names, source.labels.tolist(), strict=True))])
    return DataRecord(role, "images", dataset, cfg.data, digest, len(source))


def _recipe(cfg: TrainConfig) -> str:
    if cfg.eval_only:
        return f"weights {path_in_run(cfg.weights, _output_folder(cfg))}, {cfg.img_size} pixels"
    return (
        f"adamw lr {cfg.scaled_lr():g}, batch {cfg.batch_size}, {cfg.epochs} epochs, "
        f"{cfg.img_size} pixels, seed {cfg.seed}"
    )


def _dataset_name(cfg: TrainConfig, validation: ImageSource) -> str:
    """Return the name used for published numbers if these are ImageNet-1k's images, otherwise the folder's name."""
    if (len(validation.classes), len(validation)) == (_IMAGENET_CLASSES, _IMAGENET_IMAGES):
        return IMAGENET
    return f"{Path(cfg.data).name}_val"
