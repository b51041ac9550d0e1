"""File names in the output folder of a classification run."""

from __future__ import annotations

import logging
from pathlib import Path

from pvt_det.utils.deprecation import warn_deprecated

OPTIONS_NAME = "options.yaml"
CLASSES_NAME = "classes.json"
METRICS_NAME = "metrics.json"
TENSORBOARD_FOLDER = "tensorboard"
# Results of `--eval-only`, which must not replace those of the training run in the same folder.
EVALUATION_FOLDER = "evaluation"
BEST_STEM = "model_best"
FINAL_STEM = "model_final"
CLASSIFIER_SUFFIX = ".safetensors"
CLASSIFIER_BEST_NAME = BEST_STEM + CLASSIFIER_SUFFIX
CLASSIFIER_FINAL_NAME = FINAL_STEM + CLASSIFIER_SUFFIX
# The training state to resume from, replaced by every save.
CLASSIFIER_LAST_NAME = "model_last.pth"
# Names that earlier versions gave.
_OLD_CLASSIFIER_BEST_NAME = "best.safetensors"
_OLD_NAMES = {_OLD_CLASSIFIER_BEST_NAME: CLASSIFIER_BEST_NAME, "metrics.jsonl": METRICS_NAME}
logger = logging.getLogger(__name__)


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
