"""Read and write the files of a classification run: config, class names, weights and training state."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pvt_det.checkpoint import CheckpointStore, check_format
from pvt_det.classification.config import TrainConfig, check_same_run, dump_train_config
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.run_folder import CLASSES_NAME, OPTIONS_NAME
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import file_fault
from pvt_det.weights import save_safetensors
from pvt_det.weights.reader import read_file

# Metadata key of a .safetensors file that holds the class names as JSON.
_METADATA_KEY = "classes"


def read_saved_state(cfg: TrainConfig) -> dict[str, Any] | None:
    """Read the training state to resume from.

    Args:
        cfg: The config of the run, which names the output folder.

    Returns:
        The result of `ClassificationTrainer.state_dict`, or None if the output folder has no checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged, is from a newer version, or does not belong to a classification run.
        ConfigError: A checkpoint exists, but `cfg.resume` is not set or `cfg` differs from the config of that run.
    """
    latest = CheckpointStore(Path(cfg.output)).latest()
    if latest is None:
        return None
    if not cfg.resume:
        raise ConfigError(
            f"{cfg.output} already contains a run. Add --resume to continue it, or choose another --output."
        )
    saved = read_file(latest)
    check_format(latest, saved)
    if not isinstance(saved, dict) or not {"options", "progress", "interval"} <= saved.keys():
        raise CheckpointError(f"{latest} is not a checkpoint of a classification run. Choose another --output.")
    check_same_run(saved["options"], cfg)
    return saved


def write_config(folder: Path, cfg: TrainConfig, classes: Sequence[str]) -> None:
    """Write `options.yaml` and `classes.json`.

    Args:
        folder: The folder to write to.
        cfg: The config of the run.
        classes: Class names, in the order of the model's outputs.
    """
    # `load_train_config` replaces "." by the folder of the file, which may be moved.
    portable = dataclasses.replace(cfg, output=".") if Path(cfg.output) == folder else cfg
    write_atomically(folder / OPTIONS_NAME, dump_train_config(portable))
    write_atomically(folder / CLASSES_NAME, json.dumps(list(classes), indent=0, ensure_ascii=False))


def read_classes(file: Path) -> list[str]:
    """Read the `classes.json` of a run.

    Args:
        file: The path of `classes.json`.

    Returns:
        Class names, in the order of the model's outputs.

    Raises:
        DataError: The file is missing, or does not contain a list of strings.
    """
    try:
        classes = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}). Expected the run folder of train-cls.") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{file} is not a list of class names. Expected the run folder of train-cls.")
    return classes


def write_weights(
    path: Path, cfg: TrainConfig, classes: Sequence[str], tensors: Mapping[str, Tensor], **extra: str
) -> None:
    """Write a classifier's weights, with its variant, input size and class names as metadata.

    Args:
        path: The file to write, with the suffix .safetensors.
        cfg: The config of the run.
        classes: Class names, in the order of the model's outputs.
        tensors: The model's state dict.
        **extra: Additional metadata, such as the accuracy.
    """
    metadata = {
        "format": "pt",
        "model": cfg.model,
        "img_size": str(cfg.img_size),
        "crop_pct": str(cfg.crop_pct),
        "interpolation": cfg.interpolation,
        _METADATA_KEY: json.dumps(list(classes), ensure_ascii=False),
    }
    save_safetensors(path, tensors, metadata | extra)


def read_classes_from_weights(source: str) -> list[str] | None:
    """Read the class names from a weight file of `write_weights`.

    Args:
        source: File, URL or name of the weights.

    Returns:
        Class names in the order of the model's outputs, or None if `source` does not contain them.

    Raises:
        CheckpointError: The file is damaged, or its class names are not a list of strings.
    """
    path = Path(source)
    if path.suffix != ".safetensors" or file_fault(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            classes = (file.metadata() or {}).get(_METADATA_KEY)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}). Copy it again.") from error
    if classes is None:
        return None
    try:
        names = json.loads(classes)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the class names in its metadata are not valid JSON ({error}).") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: the class names in its metadata are not a list of strings.")
    return names
