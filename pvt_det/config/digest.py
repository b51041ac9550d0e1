"""Identity of a config: which keys change the model, the data or the evaluation, and a digest of their values.

Keys at their default value are not part of a digest, so that a new key does not change the digest of older runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

from pvt_det.config.architecture import HEADS
from pvt_det.config.keys import get_config
from pvt_det.utils.digest import value_digest

# Where files are, whose content has a digest of its own, and how the work is done. They change no result.
EXECUTION_KEYS = frozenset((
    "OUTPUT_DIR", "VERSION", "VIS_PERIOD", "CUDNN_BENCHMARK", "DATALOADER.NUM_WORKERS", "MODEL.DEVICE", "MODEL.WEIGHTS",
    "MODEL.PVT.COMPILE", "MODEL.PVT.CHECKPOINT_STAGES", "DATASETS.CHECK", "DATASETS.ALLOW_OUTSIDE",
    "DATASETS.TRAIN", "DATASETS.TRAIN_JSON", "DATASETS.TRAIN_IMAGES", "DATASETS.TRAIN_LABELS",
    "DATASETS.TEST", "DATASETS.VAL_JSON", "DATASETS.VAL_IMAGES", "DATASETS.VAL_LABELS", "DATASETS.VAL_PANOPTIC_JSON",
))  # fmt: skip
# Further keys that change no result. A resumed run treats them differently: all its processes must agree on them.
_WITHOUT_EFFECT = EXECUTION_KEYS | {
    "LOGGERS", "SOLVER.CHECKPOINT_KEEP", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.MAX_NONFINITE_STEPS",
    "TEST.EVALUATOR", "TEST.ON_ERROR",
}  # fmt: skip
# Further keys in which a run may differ from a published recipe: what its data, its seed or its machine decides.
_NOT_OF_RECIPE = frozenset((
    "SEED", "DATASETS.CLASS_NAMES", "DATASETS.LABEL_NAMES", "DATASETS.ON_ERROR", "DATASETS.TRAIN_WEIGHTS",
    *(f"MODEL.{head}.NUM_CLASSES" for head in (*HEADS, "SEM_SEG_HEAD")),
    "SOLVER.AMP.ENABLED", "SOLVER.AMP.PRECISION",
    "TEST.BEST_METRIC", "TEST.EVAL_PERIOD", "TEST.PRECISION", "TEST.VALIDATION_LOSS",
))  # fmt: skip
# Only their product, the batch size of an optimizer step, is part of a recipe.
_BATCH = ("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE_STEPS")


def effective_values(cfg: CfgNode) -> dict[str, Any]:
    """Return the values of all keys that change the model, the data or the evaluation.

    Args:
        cfg: A complete config.

    Returns:
        The values by dotted key, with the keys in alphabetical order.
    """
    return {key: value for key, value in sorted(leaves(cfg)) if key not in _WITHOUT_EFFECT}


def changed_values(cfg: CfgNode) -> dict[str, Any]:
    """Return the values of all keys that change the model, the data or the evaluation and differ from their defaults.

    Args:
        cfg: A complete config.

    Returns:
        The values by dotted key, with the keys in alphabetical order.
    """
    return _changed(effective_values(cfg))


def config_digest(cfg: CfgNode) -> str:
    """Compute the SHA-256 of the keys that change the model, the data or the evaluation.

    Args:
        cfg: A complete config.

    Returns:
        The digest as 64 hex digits.
    """
    return value_digest(changed_values(cfg))


def recipe_digest(cfg: CfgNode) -> str:
    """Compute the SHA-256 of the architecture, the schedule, the augmentation and the evaluation settings.

    A run follows a published recipe if both have the same digest. The number of classes, the seed, the number format
    and the split of the batch size into accumulation steps may differ.

    Args:
        cfg: A complete config.

    Returns:
        The digest as 64 hex digits.
    """
    values = effective_values(cfg)
    batch = values[_BATCH[0]] * values[_BATCH[1]]
    kept = {key: value for key, value in values.items() if key not in _NOT_OF_RECIPE and key not in _BATCH}
    return value_digest({**_changed(kept), "batch": batch})


def _changed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the defaults."""
    defaults = effective_values(get_config())
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}


def leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every key.

    Args:
        cfg: A config, or a section of one.
        prefix: Text before each name, such as "MODEL." for that section.
    """
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
