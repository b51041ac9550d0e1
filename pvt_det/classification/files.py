"""The files of a classification run: its config, its class names, its weights, and the state to resume from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pvt_det.checkpoint import CheckpointStore
from pvt_det.classification.config import TrainConfig, check_same_run, dump_train_config
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.run_folder import CLASSES_NAME, OPTIONS_NAME
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import file_fault
from pvt_det.weights import save_safetensors
from pvt_det.weights.reader import read_file

# Key of the class names, as JSON, in the metadata of a .safetensors file.
_METADATA_KEY = "classes"


def read_saved_state(cfg: TrainConfig) -> dict[str, Any] | None:
    """Read the training state to resume from.

    Returns:
        What `ClassificationTrainer.state_dict` returned; None if the output folder has no checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged, or not one of a classification run.
        ConfigError: There is a checkpoint, and `cfg.resume` is not set or `cfg` is of another run.
    """
    latest = CheckpointStore(Path(cfg.output)).latest()
    if latest is None:
        return None
    if not cfg.resume:
        raise ConfigError(
            f"{cfg.output}: holds a run already. Add --resume to continue it, or choose another --output."
        )
    saved = read_file(latest)
    if not isinstance(saved, dict) or not {"options", "progress", "interval"} <= saved.keys():
        raise CheckpointError(f"{latest}: is not a checkpoint of a classification run. Give another --output.")
    check_same_run(saved["options"], cfg)
    return saved


def write_config(folder: Path, cfg: TrainConfig, classes: Sequence[str]) -> None:
    """Write a config as `options.yaml`, and the class names, in the order of the model's outputs, as `classes.json`."""
    write_atomically(folder / OPTIONS_NAME, dump_train_config(cfg))
    write_atomically(folder / CLASSES_NAME, json.dumps(list(classes), indent=0, ensure_ascii=False))


def read_classes(file: Path) -> list[str]:
    """Read the `classes.json` of a run.

    Raises:
        DataError: The file is missing, or does not hold a list of strings.
    """
    try:
        classes = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): give the output folder of a run of train-cls.") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{file} is not a list of names: give the output folder of a run of train-cls.")
    return classes


def write_weights(
    path: Path, cfg: TrainConfig, classes: Sequence[str], tensors: Mapping[str, Tensor], **about: str
) -> None:
    """Write a classifier's weights, which say of themselves what the model, its input and its classes are.

    Args:
        path: The file, which ends in .safetensors.
        cfg: The config of the run.
        classes: Class names, in the order of the model's outputs.
        tensors: The model's state dict.
        **about: Further metadata of the file, such as the accuracy.
    """
    metadata = {
        "format": "pt",
        "model": cfg.model,
        "img_size": str(cfg.img_size),
        "crop_pct": str(cfg.crop_pct),
        "interpolation": cfg.interpolation,
        _METADATA_KEY: json.dumps(list(classes), ensure_ascii=False),
    }
    save_safetensors(path, tensors, metadata | about)


def classes_of_weights(source: str) -> list[str] | None:
    """Read the class names in a weight file that `write_weights` wrote; None for any other source of weights.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = Path(source)
    if path.suffix != ".safetensors" or file_fault(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged ({error}). Copy it again.") from error
    return None if text is None else json.loads(text)
