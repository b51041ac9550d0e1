"""The class names of a classifier, in the order of its outputs: in `classes.json` and inside a weight file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pvt_det.classification.config import TrainConfig
from pvt_det.errors import CheckpointError, DataError
from pvt_det.utils.paths import file_fault
from pvt_det.utils.text import listed

# Key of the class names, as JSON, in the metadata of a .safetensors file.
_METADATA_KEY = "classes"


def dump_classes(classes: Sequence[str]) -> str:
    """The class names as JSON, one on each line."""
    return json.dumps(list(classes), indent=0, ensure_ascii=False)


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


def weights_metadata(cfg: TrainConfig, classes: Sequence[str]) -> dict[str, str]:
    """What a weight file says about itself: the model, its input and its classes."""
    return {
        "format": "pt",
        "model": cfg.model,
        "img_size": str(cfg.img_size),
        "crop_pct": str(cfg.crop_pct),
        "interpolation": cfg.interpolation,
        _METADATA_KEY: json.dumps(list(classes), ensure_ascii=False),
    }


def classes_of_weights(source: str) -> list[str] | None:
    """The class names in a weight file that this package wrote; None for any other source of weights.

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


def check_same_classes(saved: Sequence[str], found: Sequence[str], what: str) -> None:
    """Check that a run is resumed with the classes that it began with.

    Args:
        saved: The run's class names.
        found: The class names of the images.
        what: What was trained on the saved ones, for the message.

    Raises:
        DataError: They differ.
    """
    if tuple(saved) != tuple(found):
        raise DataError(
            f"{what} was trained on the classes {listed(saved)}, the images have {listed(found)}: give the same --data."
        )
