"""The run folder: names of its files, and functions that open a finished run.

- `config.yaml`: the complete config. A classifier has `options.yaml` and `classes.json` instead.
- `config_changes.json`: what was changed when the run was resumed: iteration, key, old and new value.
- `model_0001999.pth` …: checkpoints, tracked by `checkpoints.json` and `last_checkpoint`.
- `model_best.pth`, `model_final.pth`: the checkpoint with the best metric, and the last one.
- `results.json`: the model, the recipe, the data set and the final metrics.
- `metrics.json`: losses, learning rate and metrics during training, one JSON object per line.
- `log.txt`: the log of the run.
- `inference/DATASET/`: detections in COCO's results format.
- `train_batch.jpg`: the first training images with their labels.
- `README.md`, `report.html`: the model card and the report page.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pvt_det.checkpoint import CheckpointStore
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.evaluation.ground_truth import COCO_MAX_DETECTIONS
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import file_fault, folder_fault
from pvt_det.utils.text import warn_deprecated

CONFIG_NAME = "config.yaml"
CHANGES_NAME = "config_changes.json"
BEST_NAME = "model_best.pth"
FINAL_NAME = "model_final.pth"
RESULTS_NAME = "results.json"
METRICS_NAME = "metrics.json"
LOG_NAME = "log.txt"
BATCH_PICTURE_NAME = "train_batch.jpg"
CARD_NAME = "README.md"
PAGE_NAME = "report.html"
# Files of classification runs.
OPTIONS_NAME = "options.yaml"
CLASSES_NAME = "classes.json"
CLASSIFIER_BEST_NAME = "model_best.safetensors"
CLASSIFIER_FINAL_NAME = "model_final.safetensors"
# The training state to resume from. Every save replaces it.
CLASSIFIER_LAST_NAME = "model_last.pth"
TENSORBOARD_FOLDER = "tensorboard"
# Results of `--eval-only`, kept apart from those of the training run in the same folder.
EVALUATION_FOLDER = "evaluation"
# File names of earlier versions.
_OLD_CLASSIFIER_BEST_NAME = "best.safetensors"
_OLD_NAMES = {_OLD_CLASSIFIER_BEST_NAME: CLASSIFIER_BEST_NAME, "metrics.jsonl": METRICS_NAME}
logger = logging.getLogger(__name__)

# The main metric of each task, by which runs are compared.
TASKS = {"bbox": "AP", "segm": "AP", "sem_seg": "mIoU", "panoptic_seg": "PQ", "classification": "top1"}
_FIELDS: dict[str, type] = {
    "config_file": str,
    "model": str,
    "recipe": str,
    "dataset": str,
    "parameters": int,
    "metrics": dict,
    "results_file": str,
    "annotations": str,
}


@dataclass(frozen=True)
class Run:
    """A finished run, read from its `results.json`.

    Attributes:
        folder: The run folder.
        config_file: The config that the run was started with. For a classifier, the name of the model.
        model: Name of the head and the backbone.
        recipe: Optimizer, batch size, schedule and image sizes. Runs with equal recipes can be compared.
        dataset: Name of the evaluated data set.
        parameters: Number of parameters.
        metrics: Metrics in percent by task and name. None for metrics without ground truth.
        results_file: Path of the detections in COCO's results format.
        annotations: Path of the ground truth in COCO's format.
        gmacs: Billions of multiply-accumulates for one image, with the image size. None if not recorded.
        seed: The run's seed, or None if not recorded.
        environment: Versions and hardware by name. Empty if not recorded.
    """

    folder: Path
    config_file: str
    model: str
    recipe: str
    dataset: str
    parameters: int
    metrics: dict[str, dict[str, float | None]]
    results_file: Path
    annotations: Path
    gmacs: str | None = None
    seed: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    def value(self, task: str) -> float | None:
        """Return the main metric of a task.

        Args:
            task: A key of `TASKS`, such as "bbox".

        Returns:
            The metric in percent, or None if it was not measured.
        """
        return self.metrics.get(task, {}).get(TASKS[task])

    @property
    def max_detections(self) -> int:
        """Largest number of detections per image that counted, read from the recall's name: 300 from "AR300"."""
        limits = [int(name[2:]) for name in self.metrics.get("bbox", {}) if re.fullmatch(r"AR\d+", name)]
        return max([COCO_MAX_DETECTIONS, *limits])


def load_run(path: str | Path) -> Run:
    """Read the results of a finished run.

    Args:
        path: The run folder, or its `results.json`.

    Returns:
        The run.

    Raises:
        DataError: If the file is missing or broken, or lacks a field.
    """
    file = Path(path)
    file = file / RESULTS_NAME if file.is_dir() else file
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}. Expected the output folder of a finished and evaluated run."
        ) from error
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}.") from error
    for name, kind in _FIELDS.items():
        if not isinstance(raw, dict) or not isinstance(raw.get(name), kind):
            raise DataError(f"{file} has no {name!r} of type {kind.__name__}. Expected the {RESULTS_NAME} of a run.")
    fields: dict[str, Any] = {name: raw[name] for name in _FIELDS if name not in ("results_file", "annotations")}
    return Run(
        folder=file.parent,
        results_file=file.parent / raw["results_file"],
        annotations=Path(raw["annotations"]),
        gmacs=raw.get("gmacs"),
        seed=raw.get("seed"),
        environment=raw.get("environment", {}),
        **fields,
    )


def save_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write `results.json`, which `load_run` reads.

    Args:
        folder: The run folder.
        results: The fields of `Run` except `folder`, plus others. `results_file` is relative to the folder. NaN and
            infinity become null, because JSON has neither.

    Returns:
        Path of the file.
    """
    path = folder / RESULTS_NAME
    write_atomically(path, json.dumps(_without_nan(results), indent=1, allow_nan=False))
    return path


def inference_folder(folder: str | Path, dataset_name: str) -> Path:
    """Return the folder for the detections on a data set.

    Args:
        folder: The run folder.
        dataset_name: Registered name of the data set.

    Returns:
        The folder, which may not exist yet.
    """
    return Path(folder) / "inference" / dataset_name


def config_file(config: str | os.PathLike[str]) -> Path:
    """Return the config file of a path.

    Args:
        config: A config file, or a run folder, which has a `config.yaml`.

    Returns:
        Path of the config file.

    Raises:
        ConfigError: If the path does not exist, or is a folder without `config.yaml`.
    """
    path = Path(config)
    fault = file_fault(path)
    if fault and folder_fault(path):
        raise ConfigError(f"{path} {fault}. Expected a run's output folder or a config file.")
    if not fault:
        return path
    if not (path / CONFIG_NAME).is_file():
        of_classifier = (path / OPTIONS_NAME).is_file()
        what = "belongs to a classifier, not a detector or segmentor" if of_classifier else f"contains no {CONFIG_NAME}"
        raise ConfigError(f"{path} {what}. Expected a run's output folder or a config file.")
    return path / CONFIG_NAME


def run_weights(config: Path, weights: str | os.PathLike[str] = "") -> str:
    """Return the weights to use with a config.

    Weights that are listed in the run's `checkpoints.json` are verified.

    Args:
        config: The config file.
        weights: Any value of `MODEL.WEIGHTS`. "" takes `model_best.pth`, or else `model_final.pth`, in the folder of
            the config.

    Returns:
        A value for `MODEL.WEIGHTS`.

    Raises:
        CheckpointError: If no weights are given and none are found, or if they are damaged.
    """
    if weights:
        path = Path(weights)
    else:
        found = next((path for name in (BEST_NAME, FINAL_NAME) if (path := config.parent / name).is_file()), None)
        if found is None:
            raise CheckpointError(
                f"no {BEST_NAME} or {FINAL_NAME} next to {config}. Name the weights to use, or a run's output folder "
                "instead of a config."
            )
        path = found
    if not file_fault(path):
        CheckpointStore(path.parent).verify_if_listed(path)
        return str(path)
    return str(weights)


def named_weights(weights: str | os.PathLike[str], overrides: Sequence[str]) -> str | os.PathLike[str]:
    """Return the weights that the command line names, either by an option or as `MODEL.WEIGHTS`.

    Args:
        weights: Value of the option, "" if it is not given.
        overrides: Config keys and values, alternating.

    Returns:
        The weights, or "" if none are named.

    Raises:
        ConfigError: If both the option and `MODEL.WEIGHTS` are given.
    """
    key = dict(zip(overrides[::2], overrides[1::2], strict=False)).get("MODEL.WEIGHTS", "")
    if weights and key:
        raise ConfigError(f"weights are given twice: {weights} and MODEL.WEIGHTS {key}. Leave one out.")
    return weights or key


def best_classifier(folder: Path) -> Path:
    """Return the path of the best weights of a classification run.

    Also finds a file with the name that earlier versions used, and warns about it.

    Args:
        folder: The run folder.

    Returns:
        The path, which may not exist.
    """
    path, old = folder / CLASSIFIER_BEST_NAME, folder / _OLD_CLASSIFIER_BEST_NAME
    if not path.exists() and old.exists():
        warn_deprecated(f"The file name {old}", f"{CLASSIFIER_BEST_NAME}: rename the file")
        return old
    return path


def rename_old_files(folder: Path) -> None:
    """Rename files of an earlier version to their current names, so that the run can be resumed.

    Args:
        folder: The run folder.
    """
    for old, new in _OLD_NAMES.items():
        if (folder / old).exists() and not (folder / new).exists():
            (folder / old).rename(folder / new)
            logger.info("Renamed %s to %s.", folder / old, new)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
