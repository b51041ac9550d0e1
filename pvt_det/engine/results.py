"""Write the results of a run, which `pvt-det compare`, `report` and `card` read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from pvt_det.config.architecture import model_name
from pvt_det.config.digest import config_digest, recipe_digest
from pvt_det.evaluation.coco import GROUND_TRUTH_FILE, RESULTS_FILE
from pvt_det.evaluation.label_results import SEGMENTATION_FILE
from pvt_det.results import Checkpoint, DataRecord, save_results
from pvt_det.run_folder import EVALUATION, evaluation_folder, inference_folder, path_in_run, write_config
from pvt_det.utils.digest import file_digest, folder_digest, value_digest
from pvt_det.utils.environment import environment
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_folder
from pvt_det.utils.text import counted

# Files of the evaluation of a data set, by their field in the results.
_FILES = {"detections": RESULTS_FILE, "ground_truth": GROUND_TRUTH_FILE, "segmentation": SEGMENTATION_FILE}


def describe_data(cfg: CfgNode) -> list[DataRecord]:
    """Describe the data sets of a config, each with the digest of its annotations.

    Call it before training, so that the digests are those of the files that were read.

    Args:
        cfg: A config whose data sets are registered.

    Returns:
        A record for each annotation file and folder of label maps.
    """
    roles = (("train", cfg.DATASETS.TRAIN), ("test", cfg.DATASETS.TEST))
    return [record for role, names in roles for name in names for record in _describe(role, name)]


def write_results(
    cfg: CfgNode,
    kind: str,
    parameters: int,
    checkpoints: Mapping[str, Checkpoint],
    *,
    config_file: str,
    data: list[DataRecord],
    usage: Mapping[str, float | None] | None = None,
    augmentations: Sequence[str] = (),
    runtime: str = "",
) -> Path:
    """Write `results.json` or `evaluation.json` to the output folder.

    A training run with several test data sets has the results of the first one in `results.json`, and those of each
    other one as an evaluation in `evaluation/DATASET`.

    Args:
        cfg: The config, whose `OUTPUT_DIR` is the folder to write to.
        kind: "training" or "evaluation".
        parameters: Number of parameters of the model.
        checkpoints: The checkpoints with their metrics in percent, by name. The first one is shown by reports and
            comparisons: the detections in the folder are its own. Metrics without a value (no ground truth of a class
            or size) become null. With several test data sets, the outer keys of the metrics are their names.
        config_file: Path of the config file that the run was started with.
        data: The data sets, as `describe_data` returned them before the run.
        usage: Training time and peak memory, as `UsageHook` measures them. None for an evaluation.
        augmentations: Descriptions of the augmentations that a script added to those of the config. A run with them
            does not follow the recipe of its config.
        runtime: Name, version and precision of the runtime of an exported file, "" for a model in PyTorch.

    Returns:
        Path of the file.
    """
    fields = {
        "config_file": path_in_run(config_file, Path(cfg.OUTPUT_DIR)),
        "config_sha256": config_digest(cfg),
        "recipe_sha256": value_digest([recipe_digest(cfg), *augmentations]) if augmentations else recipe_digest(cfg),
        "model": model_name(cfg),
        "recipe": recipe(cfg) + (f", {counted(len(augmentations), 'more augmentation')}" if augmentations else ""),
        "augmentations": list(augmentations),
        "parameters": parameters,
        "shown": next(iter(checkpoints)),
        "seed": cfg.SEED,
        "environment": environment(torch.device(cfg.MODEL.DEVICE)) | ({"runtime": runtime} if runtime else {}),
        **(usage or {}),
    }
    first, *others = cfg.DATASETS.TEST or ("",)
    for name in others:
        part = with_test_set(cfg, name)
        write_config(Path(part.OUTPUT_DIR), part)
        _save(cfg, name, part.OUTPUT_DIR, EVALUATION, checkpoints, data, fields)
    return _save(cfg, first, cfg.OUTPUT_DIR, kind, checkpoints, data, fields)


def _save(
    cfg: CfgNode,
    dataset: str,
    folder: str,
    kind: str,
    checkpoints: Mapping[str, Checkpoint],
    data: list[DataRecord],
    fields: Mapping[str, Any],
) -> Path:
    """Write the part of the results that is about one test data set."""
    if len(cfg.DATASETS.TEST) > 1:
        checkpoints = {
            name: replace(c, metrics=cast(Any, c.metrics).get(dataset, {})) for name, c in checkpoints.items()
        }
        data = [record for record in data if record.role == "train" or record.dataset == dataset]
    results = inference_folder(cfg.OUTPUT_DIR, dataset)
    files = {field: results / name for field, name in _FILES.items()} if dataset else {}
    return save_results(Path(folder), kind, checkpoints, data, {**fields, "dataset": dataset}, files)


def with_test_set(cfg: CfgNode, name: str) -> CfgNode:
    """Return the frozen config of an evaluation on one of the test data sets, and create its output folder.

    Args:
        cfg: The config of a run or an evaluation.
        name: Name of the data set, one of `DATASETS.TEST`.

    Returns:
        A copy with `DATASETS.TEST` and `OUTPUT_DIR` of the evaluation.

    Raises:
        ConfigError: The folder cannot be created or written to.
    """
    folder = evaluation_folder(cfg, name)
    make_folder(folder)
    part = cfg.clone()
    part.defrost()
    part.DATASETS.TEST, part.OUTPUT_DIR = (name,), str(folder)
    part.freeze()
    return part


def recipe(cfg: CfgNode) -> str:
    """Describe the training recipe: optimizer, batch size, schedule and image sizes.

    Two runs can be compared if their recipes are equal.

    Args:
        cfg: The run's config.

    Returns:
        The recipe in one line.
    """
    solver, size = cfg.SOLVER, cfg.INPUT
    short = "-".join(str(side) for side in sorted({min(size.MIN_SIZE_TRAIN), max(size.MIN_SIZE_TRAIN)}))
    # Images fit into a square, so that the short side is smaller except for square images.
    in_square = min(size.MIN_SIZE_TRAIN) >= size.MAX_SIZE_TRAIN
    side = f"longest side {size.MAX_SIZE_TRAIN}" if in_square else f"short side {short}"
    return (
        f"{solver.OPTIMIZER} lr {solver.BASE_LR:g}, batch {solver.IMS_PER_BATCH * solver.ACCUMULATE_STEPS}, "
        f"{solver.MAX_ITER} iterations, {side}"
    )


def trim_metrics(path: Path, start_iteration: int) -> None:
    """Remove the lines of `metrics.json` that a resumed run will write again, and incomplete lines.

    Args:
        path: Path of `metrics.json`. It may not exist.
        start_iteration: The first iteration of the resumed run. Its line and later ones are removed.
    """
    if not path.exists():
        return
    kept = [
        line
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if _before(line, start_iteration)
    ]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _before(line: str, start_iteration: int) -> bool:
    try:
        return int(json.loads(line)["iteration"]) < start_iteration
    except (ValueError, KeyError, TypeError):
        return False


def _describe(role: str, name: str) -> Iterator[DataRecord]:
    metadata = MetadataCatalog.get(name)
    source, labels = metadata.get("coco_source"), metadata.get("label_source")
    if source is not None:
        images = source.images()
        counts = (len(images.indices), images.objects)
        yield DataRecord(role, "objects", name, source.json_file, images.data.sha256, *counts, source.left_out())
    elif json_file := metadata.get("json_file"):
        yield DataRecord(role, "objects", name, json_file, _digest(Path(json_file)))
    if folder := labels.label_root if labels is not None else metadata.get("sem_seg_root"):
        yield DataRecord(role, "labels", name, folder, _digest(Path(folder)))
    if panoptic_json := metadata.get("panoptic_json"):
        yield DataRecord(role, "panoptic", name, panoptic_json, _digest(Path(panoptic_json)))


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's label maps. "" if it does not exist."""
    return file_digest(path) if path.is_file() else folder_digest(path, ".png")
