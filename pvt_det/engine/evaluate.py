"""Evaluation of a detector on the test data sets of a config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from pvt_det.checkpoint import CheckpointStore
from pvt_det.data.augmentation.transforms import build_tta_resizes
from pvt_det.data.loader import build_detection_test_loader, build_detection_validation_loader
from pvt_det.engine.results import write_results
from pvt_det.errors import CheckpointError, ConfigError
from pvt_det.evaluation.build import build_evaluator
from pvt_det.modeling.test_time_augmentation import build_tta
from pvt_det.run_folder import CONFIG_NAME, inference_folder
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import file_fault
from pvt_det.utils.precision import inference_autocast
from pvt_det.weights import load_pretrained

logger = logging.getLogger(__name__)
Results = dict[str, Any]


def evaluate(
    cfg: CfgNode,
    model: nn.Module,
    before_image: Callable[[], None] = lambda: None,
    build_loader: Callable[[CfgNode, str], Iterable[list[dict[str, Any]]]] = build_detection_test_loader,
    build_evaluator: Callable[[CfgNode, str, Path], DatasetEvaluator] = build_evaluator,
) -> Results:
    """Evaluate `model` on every data set of `DATASETS.TEST`; every process takes its part of the images.

    Args:
        cfg: The run's config; detections go to `OUTPUT_DIR/inference/<data set>`. With `TEST.AUG.ENABLED` every image
            is seen at several sizes.
        model: A bare detector; its mode is left as it was.
        before_image: Called before every image; may raise to stop.
        build_loader: Builds the images of a data set from a config and the data set's name.
        build_evaluator: Builds what measures the detections, from a config, the data set's name, and the folder for
            the detections.

    Returns:
        On the first process, metrics by task as Detectron2 nests them, `{"bbox": {"AP": …}}`, in percent; with several
        data sets, by their names first. With `TEST.VALIDATION_LOSS` there is a task `validation` with the losses.
        On other processes, an empty dictionary.
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
            with inference_autocast(cfg):
                callbacks = {"before_inference": before_image}
                results[name] = dict(inference_on_dataset(detector, loader, evaluator, callbacks=callbacks))
            if cfg.TEST.VALIDATION_LOSS:
                results[name]["validation"] = validation_losses(cfg, model, name, before_image)
    finally:
        model.train(was_training)
    if not comm.is_main_process():
        return {}
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_weights(
    cfg: CfgNode,
    *,
    config_file: str = "",
    resume: bool = False,
    allow_partial: Sequence[str] = (),
    test: Callable[[CfgNode, nn.Module], Results] = evaluate,
) -> Results:
    """Load weights, evaluate them on `DATASETS.TEST`, and write `results.json`.

    Args:
        cfg: A config set up by `pvt_det.engine.defaults.default_setup`.
        config_file: The file that the config came from, for `results.json`.
        resume: Evaluate the last checkpoint of the output folder, not `MODEL.WEIGHTS`.
        allow_partial: Patterns of keys that may be missing from `MODEL.WEIGHTS`, or unexpected in it.
        test: Evaluates a model, as a trainer's `test` does.

    Returns:
        Metrics as `evaluate` returns them.

    Raises:
        CheckpointError: The weights are missing, damaged or do not fit.
        ConfigError: No weights or no data set is named.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("There is nothing to evaluate on: give --val-json and --val-images, or DATASETS.TEST.")
    weights, iterations = _find_weights(cfg, resume)
    model = build_model(cfg)
    load_pretrained(model, weights, allow_partial=allow_partial).require_whole()
    metrics = test(cfg, model)
    if comm.is_main_process():
        # A training run's own config stays: it records how its checkpoints were made.
        if not (path := Path(cfg.OUTPUT_DIR) / CONFIG_NAME).exists():
            write_atomically(path, cfg.dump())
        results_file = write_results(cfg, model, metrics, config_file=config_file, iterations=iterations, best={})
        logger.info("Metrics of %s are in %s.", weights, results_file)
    return metrics


def _find_weights(cfg: CfgNode, resume: bool) -> tuple[str, int]:
    """The weights' file or catalog name, and the iterations they were trained for, 0 where that is not known."""
    if resume:
        store = CheckpointStore(Path(cfg.OUTPUT_DIR))
        last = store.latest()
        if last is None:
            raise CheckpointError(f"{cfg.OUTPUT_DIR} holds no checkpoint to evaluate: give one as MODEL.WEIGHTS.")
        return str(last), store.verify_if_listed(last)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "--eval-only needs weights: add MODEL.WEIGHTS path/to/model_final.pth, or --resume for the last checkpoint "
            "of OUTPUT_DIR."
        )
    path = Path(cfg.MODEL.WEIGHTS)
    return cfg.MODEL.WEIGHTS, 0 if file_fault(path) else CheckpointStore(path.parent).verify_if_listed(path)


def validation_losses(
    cfg: CfgNode, model: nn.Module, dataset_name: str, before_image: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Losses on a data set with its test-time transforms, averaged over images and processes.

    The backbone, batch norms and dropout are in evaluation mode and no buffer changes; Mask R-CNN's sampling of
    proposals stays random.

    Returns:
        Every loss and their sum, `total_loss`.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    _losses_without_side_effects(model)
    sums: dict[str, torch.Tensor] = {}
    count = 0
    with torch.no_grad(), EventStorage():
        for batch in build_detection_validation_loader(cfg, dataset_name):
            before_image()
            for name, value in model(batch).items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.float()
            count += 1
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    parts = comm.all_gather(({name: float(value) for name, value in sums.items()}, count))
    images = sum(part_count for _, part_count in parts)
    names = sorted({name for part, _ in parts for name in part})
    losses = {name: sum(part.get(name, 0.0) for part, _ in parts) / images for name in names}
    return {"total_loss": sum(losses.values()), **losses}


def _losses_without_side_effects(model: nn.Module) -> None:
    # Detectron2's heads give losses in training mode only.
    model.train()
    model.get_submodule("backbone").eval()
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
            module.eval()
