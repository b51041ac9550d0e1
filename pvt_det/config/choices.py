"""The valid values of config keys with a fixed set of choices, and their check."""

from __future__ import annotations

from collections.abc import Sequence

from pvt_det.errors import ConfigError
from pvt_det.solver.build import OPTIMIZERS
from pvt_det.utils.precision import PRECISIONS
from pvt_det.utils.text import did_you_mean

CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.PVT.COMPILE": ("", "default", "reduce-overhead"),
    "MODEL.RETINANET.LOSS_NORMALIZER": ("ema", "batch"),
    "MODEL.SEM_SEG_HEAD.LOSS_AVERAGE": ("valid", "all"),
    "INPUT.RESIZE_BACKEND": ("pil", "cv2"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "DATASETS.ON_ERROR": ("stop", "skip", "strict"),
    "DATASETS.CHECK": ("full", "fast", "off"),
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.AMP.PRECISION": ("bf16", "fp16"),
    "TEST.PRECISION": tuple(PRECISIONS),
    "TEST.EVALUATOR": ("hotcoco", "pycocotools"),
    "TEST.ON_ERROR": ("stop", "continue"),
}


def require_choice(key: str, value: str, choices: Sequence[str] = (), where: str = "") -> str:
    """Return the value of a key if it is one of the key's choices.

    Args:
        key: Dotted name of the key.
        value: Value to check.
        choices: Valid values. Defaults to `CHOICES[key]`.
        where: File that the value comes from, for the message.

    Raises:
        ConfigError: The value is not one of them. The message lists the choices and suggests the closest.
    """
    choices = choices or CHOICES[key]
    if value not in choices:
        origin = f"{where}: " if where else ""
        hint = did_you_mean(str(value), choices)
        raise ConfigError(f"{origin}{key} = {value!r}: expected one of {', '.join(choices)}.{hint}")
    return value
