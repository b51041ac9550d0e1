"""The run folder: names of its files, and functions that open a finished run.

- `config.yaml`: the complete config. A classifier has `options.yaml` and `classes.json` instead.
- `config_changes.json`: what was changed when the run was resumed: iteration, key, old and new value.
- `model_0001999.pth` …: training states to resume from, tracked by `checkpoints.json` and `last_checkpoint`.
- `model_best.pth`, `model_final.pth`: the weights with the best metric, and the last ones.
- `results.json`: model, recipe, data, training time, and the metrics of the best and the last checkpoint.
- `metrics.json`: losses, learning rate and metrics during training, one JSON object per line.
- `log.txt`: the log of the run.
- `logger_runs.json`: the ids of the run in the services of its loggers, by service.
- `inference/DATASET/`: detections in COCO's results format, and the checked annotations that they were evaluated with.
  For label maps, `segmentation.json` with the confusion matrix and the predictions for the worst and best images.
- `train_batch.jpg`: the first training images with their labels.
- `README.md`, `report.html`: the model card and the report page.
- `study.json`, `study.log`: what a study asked for, and what the process printed.
- `evaluation/DATASET/`: an evaluation of the run, with its own `evaluation.json`, `config.yaml` and `report.html`. If
  a run has several test data sets, `results.json` is about the first one, and each other one has such a folder.

A prediction has a folder of its own, with `images.json`, and `detections.json` or `panoptic.json`. If it is divided,
its folder `parts` has a `plan.json`, and a folder with such files and a `part.json` for each part that is finished.

Paths in these files that lead into the run folder are relative to it, so that the folder can be moved.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvt_det.checkpoint import MANIFEST_NAME, CheckpointStore
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.recipes import is_recipe_name, recipe_file
from pvt_det.runtimes.backends import exported_digest, find_exported, is_exported, shown_path
from pvt_det.utils.cli import split_assignments
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import file_fault, folder_fault, similar_path
from pvt_det.utils.plain_yaml import read_plain_yaml
from pvt_det.utils.text import listed, warn_deprecated

if TYPE_CHECKING:  # classification works without Detectron2
    from detectron2.config import CfgNode

CONFIG_NAME = "config.yaml"
CHANGES_NAME = "config_changes.json"
BEST_NAME = "model_best.pth"
FINAL_NAME = "model_final.pth"
RESULTS_NAME = "results.json"
EVALUATION_NAME = "evaluation.json"
METRICS_NAME = "metrics.json"
LOGGER_RUNS_NAME = "logger_runs.json"
BATCH_PICTURE_NAME = "train_batch.jpg"
CARD_NAME = "README.md"
PAGE_NAME = "report.html"
# Files that a study writes into the folders of its runs.
STUDY_NAME = "study.json"
STUDY_LOG_NAME = "study.log"
# Files of classification runs.
OPTIONS_NAME = "options.yaml"
CLASSES_NAME = "classes.json"
CLASSIFIER_BEST_NAME = "model_best.safetensors"
CLASSIFIER_FINAL_NAME = "model_final.safetensors"
# The training state to resume from. Every save replaces it.
CLASSIFIER_LAST_NAME = "model_last.pth"
TENSORBOARD_FOLDER = "tensorboard"
# Evaluations of a run, each in a folder named after the data set.
EVALUATION_FOLDER = "evaluation"
# Files of predictions.
DETECTIONS_NAME = "detections.json"
IMAGES_NAME = "images.json"
PANOPTIC_NAME = "panoptic.json"
PARTS_FOLDER = "parts"
PLAN_NAME = "plan.json"
# The weights in a folder to share.
SHARED_NAME = "model.safetensors"
# Kinds of folders. A command writes to a folder of its own kind only.
TRAINING, EVALUATION, PREDICTION, SHARED = "training", "evaluation", "prediction", "shared"
_OWNERS = {
    TRAINING: "a training run",
    EVALUATION: "an evaluation",
    PREDICTION: "a prediction",
    SHARED: "a model to share",
}
# Kinds that an evaluation can be given instead of an output folder. It writes to a folder of its own in it.
WITH_MODEL = (TRAINING, SHARED)
# Config keys that name the data to evaluate on.
_TEST_PATHS = ("VAL_JSON", "VAL_IMAGES", "VAL_LABELS", "VAL_PANOPTIC_JSON")
# Files that only a training run writes.
_CHECKPOINTS = (MANIFEST_NAME, FINAL_NAME, BEST_NAME, CLASSIFIER_LAST_NAME, CLASSIFIER_BEST_NAME)
# File names of earlier versions.
_OLD_CLASSIFIER_BEST_NAME = "best.safetensors"
_OLD_NAMES = {_OLD_CLASSIFIER_BEST_NAME: CLASSIFIER_BEST_NAME, "metrics.jsonl": METRICS_NAME}
logger = logging.getLogger(__name__)


def folder_kind(folder: str | os.PathLike[str]) -> str:
    """Return what the files in a folder belong to.

    Args:
        folder: Any path.

    Returns:
        "training", "evaluation", "prediction" or "shared". "" if the folder does not exist or has no such files.
    """
    path = Path(folder)
    is_prediction = any(
        (path / name).is_file() for name in (DETECTIONS_NAME, IMAGES_NAME, f"{PARTS_FOLDER}/{PLAN_NAME}")
    )
    is_prediction = is_prediction or _has_old_detections(path / RESULTS_NAME)
    # Checkpoints first: earlier versions of `predict` could write into a run.
    found = {
        EVALUATION: (path / EVALUATION_NAME).is_file(),
        TRAINING: any((path / name).is_file() for name in _CHECKPOINTS),
        PREDICTION: is_prediction,
        SHARED: (path / SHARED_NAME).is_file(),
    }
    kind = next((kind for kind, is_found in found.items() if is_found), "")
    return kind or (TRAINING if (path / RESULTS_NAME).is_file() else "")


def require_kind(folder: str | os.PathLike[str], kind: str) -> None:
    """Check that an output folder does not belong to another command. Call it before any work.

    Args:
        folder: The output folder, which may not exist.
        kind: What will be written: "training", "evaluation", "prediction" or "shared".

    Raises:
        ConfigError: If the folder belongs to a different command.
    """
    found = folder_kind(folder)
    if found not in ("", kind):
        raise ConfigError(
            f"{folder} is the folder of {_OWNERS[found]}. Its files could be replaced by those of {_OWNERS[kind]}. "
            "Choose another folder with --output."
        )


def evaluation_folder(cfg: CfgNode, dataset: str) -> Path:
    """Return the folder for the results of an evaluation, which may not exist yet.

    Args:
        cfg: Config with the output folder of the evaluation, or with the folder of a run or of a shared model.
        dataset: Name of the evaluated data set.

    Returns:
        `evaluation/DATASET` in the folder of a run or of a shared model, whose own files are kept, or if there are
        several data sets. A number is added to the name if that folder has the evaluation of other data with the same
        name. Otherwise the output folder itself.
    """
    output = Path(cfg.OUTPUT_DIR)
    if folder_kind(output) not in WITH_MODEL and len(cfg.DATASETS.TEST) < 2:
        return output
    folder, number = output / EVALUATION_FOLDER / dataset, 1
    while _is_of_other_data(folder, cfg):
        number += 1
        folder = folder.with_name(f"{dataset}_{number}")
    return folder


def exported_evaluation(exported: Path) -> Path:
    """Return the folder in which an exported file is evaluated, unless another one is given. It may not exist.

    Args:
        exported: The exported file, such as `mine.onnx`, whose folder is `mine_onnx_evaluation` beside it.
    """
    named = shown_path(exported)
    return named.with_name(f"{named.name.replace('.', '_')}_{EVALUATION_FOLDER}")


def results_path(path: str | os.PathLike[str]) -> Path:
    """Return where the results of a run or an exported file are.

    Args:
        path: A run folder, a results file, or an exported file.

    Returns:
        The path itself. For an exported file, the folder of its evaluation.

    Raises:
        DataError: If an exported file was not evaluated.
    """
    exported = None if (Path(path) / CONFIG_NAME).is_file() else find_exported(path)
    if exported is None:
        return Path(path)
    folder = exported_evaluation(exported)
    if not (folder / EVALUATION_NAME).is_file():
        raise DataError(
            f"{path} was not evaluated: {folder} has no {EVALUATION_NAME}. Evaluate it with: pvt-det eval "
            f"{shlex.quote(os.fspath(path))} --val-json FILE --val-images DIR"
        )
    return folder


def _is_of_other_data(folder: Path, cfg: CfgNode) -> bool:
    """Return whether a folder has an evaluation on data that was given by different paths."""
    try:
        recorded = read_plain_yaml(folder / CONFIG_NAME, DataError)["DATASETS"]
        pairs = [(recorded[key], cfg.DATASETS[key]) for key in _TEST_PATHS]
    except (DataError, KeyError, TypeError):
        return False
    return any(Path(old).absolute() != Path(new).absolute() for old, new in pairs)


def _has_old_detections(file: Path) -> bool:
    """Return whether a `results.json` is a list of detections, as `pvt-det predict` of earlier versions wrote it."""
    try:
        with file.open("rb") as opened:
            return opened.read(1) == b"["
    except OSError:
        return False


def inference_folder(folder: str | Path, dataset_name: str) -> Path:
    """Return the folder for the detections on a data set.

    Args:
        folder: The run folder.
        dataset_name: Registered name of the data set.

    Returns:
        The folder, which may not exist yet.
    """
    return Path(folder) / "inference" / dataset_name


def run_root(folder: Path) -> Path:
    """Return the folder of the run or the shared model that an evaluation is in.

    Args:
        folder: The folder of an evaluation, or any other folder, which is returned itself.
    """
    is_inside = folder.parent.name == EVALUATION_FOLDER and folder_kind(folder.parents[1]) in WITH_MODEL
    return folder.parents[1] if is_inside else folder


def path_in_run(path: str | os.PathLike[str], folder: Path) -> str:
    """Return a path in the form in which a run folder, which may be moved, records it.

    Args:
        path: Path of a file, or any other value of `MODEL.WEIGHTS`.
        folder: The folder of a run, or of an evaluation in it.

    Returns:
        The path relative to the run folder if the file is in it, and otherwise `path` itself.
    """
    root = run_root(folder).resolve()
    if file_fault(path) or not (absolute := Path(path).resolve()).is_relative_to(root):
        return os.fspath(path)
    return absolute.relative_to(root).as_posix()


def write_config(folder: Path, cfg: CfgNode) -> None:
    """Write the config of a run or an evaluation without the paths of its folder, which may be moved.

    Args:
        folder: The folder to write to.
        cfg: The config.
    """
    moved = cfg.clone()
    moved.defrost()
    # `load_config` replaces it by the folder of the file.
    moved.OUTPUT_DIR = "."
    # The weights that an evaluation is of are recorded in its results.
    if path_in_run(cfg.MODEL.WEIGHTS, folder) != cfg.MODEL.WEIGHTS:
        moved.MODEL.WEIGHTS = ""
    write_atomically(folder / CONFIG_NAME, moved.dump())


def config_file(config: str | os.PathLike[str]) -> Path:
    """Return the config file that a user means.

    Args:
        config: A config file, a run folder, which has a `config.yaml`, the name of a recipe of this package, or an
            exported file, which contains its config.

    Returns:
        Path of the config file or the exported file.

    Raises:
        ConfigError: If the path does not exist and is not the name of a recipe, or is a folder without `config.yaml`.
    """
    path = recipe_file(config) if is_recipe_name(config) else Path(config)
    fault = file_fault(path)
    if fault and folder_fault(path):
        raise ConfigError(f"{path} {fault}. Expected a run's output folder or a config file.{similar_path(path)}")
    if not fault:
        return path
    if not (path / CONFIG_NAME).is_file():
        if exported := find_exported(path):
            return exported
        of_classifier = (path / OPTIONS_NAME).is_file()
        what = "belongs to a classifier, not a detector or segmentor" if of_classifier else f"contains no {CONFIG_NAME}"
        runs = sorted(str(file.parent) for file in path.glob(f"*/{CONFIG_NAME}"))
        inside = f" It contains the runs {listed(runs)}." if runs else ""
        raise ConfigError(f"{path} {what}. Expected a run's output folder or a config file.{inside}")
    return path / CONFIG_NAME


def run_weights(config: Path, weights: str | os.PathLike[str] = "") -> str:
    """Return the weights to use with a config.

    Weights that are listed in the run's `checkpoints.json` are verified.

    Args:
        config: The config file, or an exported file, which contains its weights.
        weights: Any value of `MODEL.WEIGHTS`. "" takes `model_best.pth`, or else `model_final.pth`, or else the last
            checkpoint of an unfinished run, in the folder of the config.

    Returns:
        A value for `MODEL.WEIGHTS`.

    Raises:
        CheckpointError: If no weights are given and none are found, or if they are damaged.
    """
    return identified_weights(config, weights)[0]


def identified_weights(config: Path, weights: str | os.PathLike[str] = "") -> tuple[str, str]:
    """Return the weights to use with a config, and their digest.

    Args:
        config: The config file, or an exported file, which contains its weights.
        weights: Any value of `MODEL.WEIGHTS`. "" takes `model_best.pth`, or else `model_final.pth`, or else the last
            checkpoint of an unfinished run, in the folder of the config.

    Returns:
        A value for `MODEL.WEIGHTS`, and the SHA-256 of the file. The digest of a URL or catalog name is "".

    Raises:
        CheckpointError: If no weights are given and none are found, or if they are damaged.
        ConfigError: If weights are given for an exported file.
    """
    if is_exported(config):
        if weights:
            raise ConfigError(f"--weights {weights} has no effect: {config} contains its weights. Leave it out.")
        path = config
    elif weights:
        path = (find_exported(weights) if not folder_fault(weights) else None) or Path(weights)
    elif has_weights(config):
        path = _finished_weights(config) or _unfinished_weights(config)
    else:
        raise CheckpointError(
            f"no {BEST_NAME} or {FINAL_NAME} and no checkpoint next to {config}. Name the weights to use, or a run's "
            "output folder instead of a config."
        )
    if not file_fault(path):
        return str(path), identify(path)[0]
    return str(weights), ""


def identify(path: Path) -> tuple[str, int]:
    """Compute the digest of weights or an exported file, and verify those that belong to a run.

    Args:
        path: An existing file.

    Returns:
        The SHA-256, and the number of iterations that the weights were trained for, or 0 if it is not known.

    Raises:
        CheckpointError: If a file cannot be read, or its content differs from what was saved.
    """
    return (exported_digest(path), 0) if is_exported(path) else CheckpointStore(path.parent).identify(path)


def has_weights(config: Path) -> bool:
    """Return whether a config has weights in its folder, as those of a run do, or is an exported file.

    Args:
        config: The config file or an exported file.
    """
    return is_exported(config) or _finished_weights(config) is not None or any(config.parent.glob("model_[0-9]*.pth"))


def _finished_weights(config: Path) -> Path | None:
    return next((path for name in (BEST_NAME, FINAL_NAME) if (path := config.parent / name).is_file()), None)


def _unfinished_weights(config: Path) -> Path:
    """Return the last checkpoint of a run that has no best or final weights yet, and log which one it is."""
    from pvt_det.config import load_config

    store = CheckpointStore(config.parent)
    last = store.latest()
    assert last is not None  # `has_weights` has found it
    done, total = store.identify(last)[1], load_config(config, training=False).SOLVER.MAX_ITER
    logger.warning(
        "%s is not finished and has no best weights yet. Using its last checkpoint, %s, after iteration %s of %d.",
        config.parent,
        last.name,
        done or "?",
        total,
    )
    return last


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
    words = split_assignments(overrides)
    key = dict(zip(words[::2], words[1::2], strict=False)).get("MODEL.WEIGHTS", "")
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


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a run's `metrics.json`.

    Args:
        folder: The run folder.

    Returns:
        Values by name of each line. Empty if the file does not exist.
    """
    file = folder / METRICS_NAME
    if not file.is_file():
        return []
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            # The line is incomplete because the run was killed.
            continue
    return [line for line in lines if isinstance(line, dict)]
