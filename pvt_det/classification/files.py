"""The files that a classification run reads and writes in its output folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pvt_det.checkpoint import CheckpointStore, write_atomically
from pvt_det.classification.classes import dump_classes, weights_metadata
from pvt_det.classification.config import TrainConfig, check_same_run, dump_train_config
from pvt_det.errors import CheckpointError, ConfigError
from pvt_det.run_folder import CLASSES_NAME, OPTIONS_NAME
from pvt_det.weights import save_safetensors
from pvt_det.weights.reader import read_file


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


def write_config(cfg: TrainConfig, classes: Sequence[str]) -> None:
    """Write the config and the class names of a run that starts."""
    folder = Path(cfg.output)
    write_atomically(folder / OPTIONS_NAME, dump_train_config(cfg))
    write_atomically(folder / CLASSES_NAME, dump_classes(classes))


def write_weights(name: str, cfg: TrainConfig, classes: Sequence[str], model: nn.Module, about: dict[str, str]) -> None:
    """Write a model's weights with the class names.

    Args:
        name: File name, which ends in .safetensors.
        cfg: The config of the run.
        classes: Class names, in the order of the model's outputs.
        model: The classifier.
        about: Further metadata of the file, such as the accuracy.
    """
    save_safetensors(Path(cfg.output) / name, model.state_dict(), weights_metadata(cfg, classes) | about)
