"""A run's output folder: the name of every file in it, and how to open a finished run.

- `config.yaml`: the complete config; a classifier has `options.yaml` and `classes.json`.
- `model_0001999.pth` …: checkpoints, of which `checkpoints.json` and `last_checkpoint` keep track.
- `model_best.pth`, `model_final.pth`: the checkpoint with the best metric, and the last one.
- `results.json`: what was trained, how, on what, and the final metrics.
- `metrics.json`: a JSON object per line with losses, learning rate and metrics along the way.
- `log.txt`: everything that the run logged.
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
BEST_NAME = "model_best.pth"
FINAL_NAME = "model_final.pth"
RESULTS_NAME = "results.json"
METRICS_NAME = "metrics.json"
LOG_NAME = "log.txt"
BATCH_PICTURE_NAME = "train_batch.jpg"
CARD_NAME = "README.md"
PAGE_NAME = "report.html"
# Of classifiers.
OPTIONS_NAME = "options.yaml"
CLASSES_NAME = "classes.json"
CLASSIFIER_BEST_NAME = "model_best.safetensors"
CLASSIFIER_FINAL_NAME = "model_final.safetensors"
# The training state to resume from, replaced by every save.
CLASSIFIER_LAST_NAME = "model_last.pth"
TENSORBOARD_FOLDER = "tensorboard"
# Results of `--eval-only`, which must not replace those of the training run in the same folder.
EVALUATION_FOLDER = "evaluation"
# Names that earlier versions gave.
_OLD_CLASSIFIER_BEST_NAME = "best.safetensors"
_OLD_NAMES = {_OLD_CLASSIFIER_BEST_NAME: CLASSIFIER_BEST_NAME, "metrics.jsonl": METRICS_NAME}
logger = logging.getLogger(__name__)

# The metric of each task that runs are compared by.
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
        folder: The run's output folder.
        config_file: The config that it was started with; for a classifier, the name of the model.
        model: Head and backbone.
        recipe: Optimizer, batch, schedule and image sizes; runs with equal recipes can be compared.
        dataset: Name of the evaluated data set.
        parameters: Number of parameters.
        metrics: Percent by task and metric, None where there is no ground truth.
        results_file: Detections in COCO's results format.
        annotations: Ground truth in COCO's format.
        gmacs: Cost of one image with the image's size, where the run recorded it.
        seed: The run's seed, where recorded.
        environment: Versions and hardware by name; empty where not recorded.
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
        """Return the metric of a task of `TASKS` in percent, None where it was not measured."""
        return self.metrics.get(task, {}).get(TASKS[task])

    @property
    def max_detections(self) -> int:
        """Detections per image that counted, which the name of the last recall tells."""
        limits = [int(name[2:]) for name in self.metrics.get("bbox", {}) if re.fullmatch(r"AR\d+", name)]
        return max([COCO_MAX_DETECTIONS, *limits])


def load_run(path: str | Path) -> Run:
    """Read a run's output folder, or its `results.json`.

    Raises:
        DataError: The file is missing, broken, or lacks a field.
    """
    file = Path(path)
    file = file / RESULTS_NAME if file.is_dir() else file
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}): give the output folder of a run that was finished and evaluated"
        ) from error
    except ValueError as error:
        raise DataError(f"{file} is broken: {error}") from error
    for name, kind in _FIELDS.items():
        if not isinstance(raw, dict) or not isinstance(raw.get(name), kind):
            raise DataError(f"{file} has no {name!r} ({kind.__name__}): it is not the results file of a run")
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
    """Write `results.json`, which `load_run` reads; NaN and infinity become null, since JSON has neither.

    Args:
        folder: The run's output folder.
        results: The fields of `Run` but `folder`, with paths relative to it, and more.
    """
    path = folder / RESULTS_NAME
    write_atomically(path, json.dumps(_without_nan(results), indent=1, allow_nan=False))
    return path


def inference_folder(folder: str | Path, dataset_name: str) -> Path:
    """Return the folder for a data set's detections in a run's output folder."""
    return Path(folder) / "inference" / dataset_name


def config_file(config: str | os.PathLike[str]) -> Path:
    """Return the config file that a path means: itself, or `config.yaml` in a run's output folder.

    Raises:
        ConfigError: Nothing is there, or a folder without one.
    """
    path = Path(config)
    fault = file_fault(path)
    if fault and folder_fault(path):
        raise ConfigError(f"{path} {fault}: expected a run's output folder, or a config file.")
    if not fault:
        return path
    if not (path / CONFIG_NAME).is_file():
        of_classifier = (path / OPTIONS_NAME).is_file()
        what = "is of a classifier, not of a detector or segmentor" if of_classifier else f"holds no {CONFIG_NAME}"
        raise ConfigError(f"{path} {what}: expected a run's output folder, or a config file.")
    return path / CONFIG_NAME


def run_weights(config: Path, weights: str | os.PathLike[str] = "") -> str:
    """Return the weights to use with a config: those given, or the best ones beside it.

    Weights that the run's list of checkpoints names are verified.

    Args:
        config: The config file.
        weights: Anything that `MODEL.WEIGHTS` takes; "" looks beside the config.

    Raises:
        CheckpointError: None are given and none are there, or they are damaged.
    """
    if weights:
        path = Path(weights)
    else:
        found = next((path for name in (BEST_NAME, FINAL_NAME) if (path := config.parent / name).is_file()), None)
        if found is None:
            raise CheckpointError(
                f"no {BEST_NAME} or {FINAL_NAME} lies beside {config}: name the weights to use, or the folder of a run "
                "instead of its config."
            )
        path = found
    if not file_fault(path):
        CheckpointStore(path.parent).verify_if_listed(path)
        return str(path)
    return str(weights)


def named_weights(weights: str | os.PathLike[str], overrides: Sequence[str]) -> str | os.PathLike[str]:
    """Return the weights that a user names, as an option or as `MODEL.WEIGHTS` among keys of the config; "" for none.

    Args:
        weights: The option's value, "" where it is not given.
        overrides: Keys of the config and their values, alternating.

    Raises:
        ConfigError: Both are given.
    """
    key = dict(zip(overrides[::2], overrides[1::2], strict=False)).get("MODEL.WEIGHTS", "")
    if weights and key:
        raise ConfigError(f"weights are named twice, {weights} and MODEL.WEIGHTS {key}: leave one out.")
    return weights or key


def best_classifier(folder: Path) -> Path:
    """The best weights of a classification run. They may be missing.

    Args:
        folder: The run's output folder. The file name of earlier versions is found too, with a warning.
    """
    path, old = folder / CLASSIFIER_BEST_NAME, folder / _OLD_CLASSIFIER_BEST_NAME
    if not path.exists() and old.exists():
        warn_deprecated(f"The file name {old}", f"{CLASSIFIER_BEST_NAME}: rename the file")
        return old
    return path


def rename_old_files(folder: Path) -> None:
    """Give the files that an earlier version wrote their present names, before a run is resumed."""
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
