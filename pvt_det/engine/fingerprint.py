"""The fingerprint of a training run: everything that its result depends on, as plain values by name.

It consists of the config keys that change the result, of digests of the data, and of the code version. All processes
of a run must agree on it. Every checkpoint contains it, and a resumed run compares it with its own:

- Where files are, the device, workers, when to save and evaluate: ignored, because the result does not depend on it.
- The batch size, accumulation, sampler, seed, optimizer, classes or training data: a change is refused, because the
  position in the data or the optimizer's state would be wrong.
- The solver (learning rate, schedule, clipping, precision …), test settings, test data, code version: a change is
  applied, with a warning, and recorded.
- Any other key, such as the model, its losses, image sizes, augmentation: a change is refused, unless it is allowed
  with `--allow-change KEY`. It is then applied and recorded as well. The augmentations that a script adds to those of
  the config have the key `augmentations`.

What was applied is kept in the checkpoints and in `config_changes.json`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.transforms import Augmentation

from pvt_det.config import get_config
from pvt_det.config.digest import EXECUTION_KEYS, leaves
from pvt_det.data.augmentation.describe import describe_augmentation
from pvt_det.data.digest import describe_dataset
from pvt_det.errors import ConfigError
from pvt_det.utils.agreement import shortened
from pvt_det.utils.environment import CODE, code_fingerprint
from pvt_det.utils.text import did_you_mean, listed

_TRAINING_DATA, _TEST_DATA = "training data", "test data"
# Augmentations that a script adds to those of the config.
_AUGMENTATIONS = "augmentations"
# May differ between processes and change in a resumed run.
_FREE = (*EXECUTION_KEYS, "SOLVER.REFERENCE_WORLD_SIZE", "DATASETS.PROPOSAL_FILES_*")
# May change in a resumed run without a word. They must agree between processes, which save and evaluate together.
_WHEN = ("LOGGERS", "SOLVER.CHECKPOINT_KEEP", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")
# Decide the order of the data or the meaning of the optimizer's state.
_FIXED = (
    "SEED", "SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE_STEPS", "SOLVER.OPTIMIZER",
    "DATALOADER.*", "DATASETS.TRAIN_WEIGHTS", "DATASETS.CLASS_NAMES", "DATASETS.LABEL_NAMES", f"{_TRAINING_DATA}*",
)  # fmt: skip
# May change on purpose.
_APPLIED = ("SOLVER.*", "TEST.*", "*_TEST", "FLOAT32_PRECISION", "DATASETS.ON_ERROR", f"{_TEST_DATA}*", CODE)


def config_values(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys on which all processes must agree.

    Args:
        cfg: A complete config.

    Returns:
        The values by dotted key, with lists instead of tuples.
    """
    return {key: _plain(value) for key, value in leaves(cfg) if not _matches(key, _FREE)}


def training_fingerprint(cfg: CfgNode, augmentations: Sequence[Augmentation] = ()) -> dict[str, Any]:
    """Return everything that the result of a run depends on.

    Args:
        cfg: A config whose data sets are registered.
        augmentations: Augmentations that are applied before those of the config.

    Returns:
        Plain values by name: config keys, data and code version.

    Raises:
        DataError: The annotations cannot be used.
    """
    facts = config_values(cfg) | {_AUGMENTATIONS: [describe_augmentation(each) for each in augmentations]}
    for part, names in ((_TRAINING_DATA, cfg.DATASETS.TRAIN), (_TEST_DATA, cfg.DATASETS.TEST)):
        for number, name in enumerate(names, 1):
            label = part if len(names) == 1 else f"{part} {number}"
            facts |= {f"{label}: {kind}": text for kind, text in describe_dataset(name).items()}
    return facts | {CODE: code_fingerprint()}


def check_allowed_changes(patterns: Sequence[str]) -> None:
    """Check the values of `--allow-change`.

    Args:
        patterns: Config keys, or patterns such as `INPUT.*`.

    Raises:
        ConfigError: No key matches, or only keys that a resumed run cannot change.
    """
    known = [*(key for key, _ in leaves(get_config())), _AUGMENTATIONS]
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise ConfigError(
                f"--allow-change {pattern}: unknown config key.{did_you_mean(pattern, known)} Give a key, or "
                "a pattern such as 'INPUT.*'."
            )
        if all(_matches(key, _FIXED) and not _matches(key, _FREE) for key in found):
            raise ConfigError(
                f"--allow-change {pattern}: a resumed run cannot change this. The order of the data or the state of "
                "the optimizer would be wrong. Start a new run in another folder (--output)."
            )


def find_changes(
    path: Path, saved: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Compare the fingerprint of a checkpoint with that of the run that resumes from it.

    Args:
        path: The checkpoint, for messages.
        saved: The checkpoint's fingerprint.
        now: The fingerprint of the resumed run.
        allowed: Config keys that may change, or patterns such as `INPUT.*`.

    Returns:
        The changes to apply, each with `key`, `old` and `new`.

    Raises:
        ConfigError: Something has changed that must not, or that is not allowed. The message names all such keys with
            their values.
    """
    defaults = config_values(get_config()) | {_AUGMENTATIONS: []}
    changes = [
        {"key": key, "old": old, "new": new}
        for key, new in now.items()
        # A key that the checkpoint does not have is new in this version and had the effect of its default.
        if repr(old := _plain(saved.get(key, defaults.get(key, "unknown")))) != repr(new) and not _matches(key, _WHEN)
    ]
    lost = [key for key in saved if key not in now and key.startswith((_TRAINING_DATA, _TEST_DATA))]
    changes += [{"key": key, "old": _plain(saved[key]), "new": "none"} for key in lost]
    if fixed := [change for change in changes if _matches(change["key"], _FIXED)]:
        raise ConfigError(
            f"{path} cannot be resumed: {describe_changes(fixed)}. The order of the data or the state of the optimizer "
            f"would be wrong. Resume with the old values and data. To train on with new ones, start a run in another "
            f"folder (--output) from these weights (MODEL.WEIGHTS {path})."
        )
    refused = [change for change in changes if not _matches(change["key"], (*_APPLIED, *allowed))]
    if refused:
        words = " ".join(f"--allow-change {change['key']}" for change in refused)
        raise ConfigError(
            f"{path} cannot be resumed: {describe_changes(refused)}. Resume with the old values (config.yaml in the "
            f"same folder), or if the change is intended, add {words}"
        )
    return changes


def describe_changes(changes: Sequence[Mapping[str, Any]]) -> str:
    """Describe changes in one line: "SOLVER.BASE_LR was 0.1 and is 0.2, …".

    Args:
        changes: The result of `find_changes`.
    """
    return listed([f"{c['key']} was {shortened(c['old'])} and is {shortened(c['new'])}" for c in changes], 10)


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def _plain(value: Any) -> Any:
    """Return a value with lists instead of tuples, which are equal in a config."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
