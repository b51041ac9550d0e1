"""Evaluation of a model on the test data sets of a config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from pvt_det.checkpoint import CheckpointStore
from pvt_det.data.augmentation.transforms import build_tta_resizes
from pvt_det.data.loader import build_detection_test_loader, build_detection_validation_loader
from pvt_det.engine.results import describe_data, with_test_set, write_results
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.evaluation.build import build_evaluator
from pvt_det.modeling.test_time_augmentation import build_tta
from pvt_det.models.complexity import count_parameters
from pvt_det.results import EVALUATED, Checkpoint
from pvt_det.run_folder import EVALUATION, identify, inference_folder, path_in_run, write_config
from pvt_det.runtimes.model import ExportedModel, load_model
from pvt_det.utils.precision import inference_autocast
from pvt_det.utils.progress import track
from pvt_det.weights.source import locate

__all__ = ["evaluate_weights"]

logger = logging.getLogger(__name__)
Results = dict[str, Any]


def evaluate(
    cfg: CfgNode,
    model: nn.Module,
    before_image: Callable[[], None] = lambda: None,
    build_loader: Callable[[CfgNode, str], Iterable[list[dict[str, Any]]]] = build_detection_test_loader,
    build_evaluator: Callable[[CfgNode, str, Path], DatasetEvaluator] = build_evaluator,
) -> Results:
    """Evaluate `model` on every data set of `DATASETS.TEST`.

    The images are divided among the processes.

    Args:
        cfg: The run's config. Detections are written to `OUTPUT_DIR/inference/<data set>`. With `TEST.AUG.ENABLED`,
            every image is evaluated at several sizes.
        model: The model, not wrapped in `DistributedDataParallel`. Its training mode is restored afterwards.
        before_image: Called before every image. It may raise an exception to stop the evaluation.
        build_loader: Builds the test loader from a config and the name of a data set.
        build_evaluator: Builds the evaluator from a config, the name of a data set and the folder for the detections.

    Returns:
        On the main process, the metrics in percent by task as in Detectron2, `{"bbox": {"AP": …}}`. With several data
        sets, the outer keys are their names. With `TEST.VALIDATION_LOSS`, the losses are in a task `validation`. On
        other processes, an empty dictionary.
    """
    was_training = model.training
    results = {}
    try:
        for name in cfg.DATASETS.TEST:
            folder = inference_folder(cfg.OUTPUT_DIR, name)
            folder.mkdir(parents=True, exist_ok=True)
            evaluator = build_evaluator(cfg, name, folder)
            test_cfg, detector = build_tta(cfg, model, build_tta_resizes(cfg))
            loader = build_loader(test_cfg, name)
            with inference_autocast(cfg), _tracked(f"evaluating {name}", loader) as advance:
                callbacks = {"before_inference": before_image, "after_inference": advance}
                results[name] = dict(inference_on_dataset(detector, loader, evaluator, callbacks=callbacks))
            if cfg.TEST.VALIDATION_LOSS:
                results[name]["validation"] = validation_losses(cfg, model, name, before_image)
    finally:
        model.train(was_training)
    return _by_data_set(results)


def _by_data_set(results: Results) -> Results:
    """Return the metrics by name of the data set, those of a single data set without it, as Detectron2 does."""
    if not comm.is_main_process():
        return {}
    return next(iter(results.values())) if len(results) == 1 else results


def _tracked(description: str, batches: Any) -> AbstractContextManager[Callable[[], None]]:
    """Show the progress of the main process, whose batches are its share. Yields a function to call after each."""
    return track(description, len(batches)) if comm.is_main_process() else nullcontext(lambda: None)


def evaluate_weights(
    cfg: CfgNode,
    *,
    config_file: str = "",
    resume: bool = False,
    allow_partial: Sequence[str] = (),
    test: Callable[[CfgNode, nn.Module], Results] = evaluate,
) -> Results:
    """Load weights, evaluate them on `DATASETS.TEST`, and write `evaluation.json`.

    If the output folder belongs to a training run, everything is written to `evaluation/DATASET` in it. Several data
    sets have a folder each.

    Args:
        cfg: A config set up by `pvt_det.engine.defaults.default_setup`.
        config_file: Path of the config file, recorded in `evaluation.json`.
        resume: Whether to evaluate the last checkpoint of the output folder instead of `MODEL.WEIGHTS`.
        allow_partial: Patterns of keys that may be missing from or unexpected in `MODEL.WEIGHTS`.
        test: Function that evaluates a model, such as `PVTTrainer.test`.

    Returns:
        On the main process, the metrics in percent by task. With several data sets, the outer keys are their names. On
        other processes, an empty dictionary.

    Raises:
        CheckpointError: If the weights are missing, damaged or do not fit.
        ConfigError: If no weights or no data set is given.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("No data set to evaluate on. Give --val-json and --val-images, or DATASETS.TEST.")
    weights, sha256, iterations = _find_weights(cfg, resume)
    parts = {name: with_test_set(cfg, name) for name in cfg.DATASETS.TEST}
    data = {name: describe_data(part) if comm.is_main_process() else [] for name, part in parts.items()}
    model = load_model(cfg, weights, allow_partial=allow_partial)
    parameters, runtime = count_parameters(model), ""
    if isinstance(model, ExportedModel):
        parameters, runtime = model.metadata.parameters, model.runtime
    results = {}
    for name, part in parts.items():
        metrics = results[name] = test(part, model)
        if comm.is_main_process():
            folder = Path(part.OUTPUT_DIR)
            write_config(folder, part)
            checkpoints = {EVALUATED: Checkpoint(path_in_run(weights, folder), sha256, iterations, metrics)}
            path = write_results(
                part,
                EVALUATION,
                parameters,
                checkpoints,
                config_file=config_file,
                data=data[name],
                runtime=runtime,
            )
            logger.info("Metrics of %s are in %s.", weights, path)
    return _by_data_set(results)


def _find_weights(cfg: CfgNode, resume: bool) -> tuple[str, str, int | None]:
    """Return the file or catalog name of the weights, their digest, and their trained iterations if known."""
    if resume:
        last = CheckpointStore(Path(cfg.OUTPUT_DIR)).latest()
        if last is None:
            raise CheckpointError(f"{cfg.OUTPUT_DIR} contains no checkpoint to evaluate. Give one as MODEL.WEIGHTS.")
        weights = str(last)
    else:
        weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise ConfigError(
            "--eval-only needs weights. Add MODEL.WEIGHTS path/to/model_final.pth, or --resume for the last checkpoint "
            "in OUTPUT_DIR."
        )
    path = locate(weights)
    sha256, iterations = identify(path)
    return weights, sha256, iterations or None


def validation_losses(
    cfg: CfgNode, model: nn.Module, dataset_name: str, before_image: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Compute the losses on a data set with test-time transforms, averaged over images and processes.

    The backbone, batch norms and dropout are in evaluation mode. Mask R-CNN still samples proposals at random. Buffers
    and the mode of every module are restored afterwards, also after an error.

    Args:
        cfg: The run's config.
        model: The model, not wrapped in `DistributedDataParallel`.
        dataset_name: Registered name of the data set.
        before_image: Called before every image. It may raise an exception to stop.

    Returns:
        Every loss by name, and their sum as `total_loss`.

    Raises:
        DataError: If the data set has no images.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    loader = build_detection_validation_loader(cfg, dataset_name)
    tracked = _tracked(f"validation loss of {dataset_name}", loader)
    with _loss_mode(model), torch.no_grad(), EventStorage(), tracked as advance:
        for batch in loader:
            before_image()
            for name, value in model(batch).items():
                # A loss is a mean over the images of its batch.
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.float() * len(batch)
            count += len(batch)
            advance()
    parts = comm.all_gather(({name: float(value) for name, value in sums.items()}, count))
    images = sum(part_count for _, part_count in parts)
    if not images:
        raise DataError(f"{dataset_name} has no images to compute losses on. Set TEST.VALIDATION_LOSS False.")
    names = sorted({name for part, _ in parts for name in part})
    losses = {name: sum(part.get(name, 0.0) for part, _ in parts) / images for name in names}
    return {"total_loss": sum(losses.values()), **losses}


@contextmanager
def _loss_mode(model: nn.Module) -> Iterator[None]:
    """Context manager in which the model returns losses, without changing batch norm statistics or dropping values."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        _set_loss_mode(model)
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _set_loss_mode(model: nn.Module) -> None:
    # The heads of Detectron2 return losses in training mode only.
    model.train()
    model.get_submodule("backbone").eval()
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
            module.eval()
