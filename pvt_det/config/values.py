"""Does a value suit its key? Types, null, infinities and signs are judged by the key's default."""

from __future__ import annotations

import ast
from typing import Any

from pvt_det.errors import ConfigError

# Numbers whose default is not negative but that may be: label lists, image statistics, a void label.
_MAY_BE_NEGATIVE = {"MODEL.PIXEL_MEAN", "MODEL.ROI_HEADS.IOU_LABELS", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"}
_MAY_BE_INFINITE = {"SOLVER.CLIP_GRADIENTS.NORM_TYPE"}
# What the elements of a list look like whose default is empty, and the type of a key whose default is null.
_EXAMPLES: dict[str, Any] = {
    "DATASETS.TRAIN": ("",),
    "DATASETS.TEST": ("",),
    "DATASETS.PROPOSAL_FILES_TRAIN": ("",),
    "DATASETS.PROPOSAL_FILES_TEST": ("",),
    "MODEL.FPN.IN_FEATURES": [""],
    "MODEL.PVT.CHECKPOINT_STAGES": [0],
    "TEST.KEYPOINT_OKS_SIGMAS": [0.0],
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
}
_LARGEST = 2**63
_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
}


def coerce(value: Any, default: Any, key: str, where: str) -> Any:
    """Turn `value` into the type of the key's `default`.

    Integers become floats where floats stand, lists and tuples each other, and texts such as `1e-4` or
    `(60000, 80000)`, which YAML does not take for numbers or lists, what they spell.

    Args:
        value: As read from a file or the command line.
        default: The value that the key has before any file is read.
        key: Dotted name, for messages and the few exceptions.
        where: The file or "command line", for messages.

    Raises:
        ConfigError: The type is wrong, a number is not finite, or negative where it cannot be.
    """
    if default is None and (value is None or _spelled(value) is None):
        return None
    example = _EXAMPLES.get(key, default)
    result = _match(value, example, key, where)
    if not all(map(_is_writable, _texts(result))):
        raise ConfigError(f"{where}: {key} = {_shown(value)}: only Unicode texts without zero bytes can stand here.")
    numbers = list(_numbers(result))
    if key not in _MAY_BE_INFINITE and not all(-_LARGEST <= number <= _LARGEST for number in numbers):
        raise ConfigError(f"{where}: {key} = {_shown(value)}: only finite numbers of ordinary size can stand here.")
    may_be_negative = key in _MAY_BE_NEGATIVE or any(number < 0 for number in _numbers(example))
    if not may_be_negative and any(number < 0 for number in numbers):
        raise ConfigError(f"{where}: {key} = {_shown(value)}: a negative number cannot stand here.")
    return result


def _match(value: Any, example: Any, key: str, where: str) -> Any:
    if not isinstance(example, str):
        value = _spelled(value)
    if isinstance(example, list | tuple) and isinstance(value, list | tuple):
        # An example without elements says nothing about them, but that they are plain.
        items = [_match_item(item, example[0] if example else _plain(item), key, where) for item in value]
        return type(example)(items)
    if type(example) is float and type(value) is int and abs(value) <= _LARGEST:
        return float(value)
    if type(value) is type(example):
        return value
    raise _wrong_type(value, example, key, where)


def _match_item(value: Any, example: Any, key: str, where: str) -> Any:
    """An element of a list: any number will do where a number stands (anchor sizes are often fractions)."""
    if type(example) is int and type(value) is float:
        return value
    return _match(value, example, key, where)


def _wrong_type(value: Any, example: Any, key: str, where: str) -> ConfigError:
    expected = _NAMES.get(type(example), type(example).__name__)
    hint = f" Write [{value}] for a list of one." if isinstance(example, list | tuple) and value is not None else ""
    return ConfigError(f"{where}: {key} = {_shown(value)}: expected {expected}, such as {example!r}.{hint}")


def _shown(value: Any) -> str:
    """The value as the user would write it, cut where it gets long."""
    try:
        text = "null" if value is None else repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a very long number"
    return text if len(text) <= 100 else f"{text[:100]}…"


def _plain(item: Any) -> Any:
    """An example that `item` agrees with if it is a scalar or list at all."""
    return [] if isinstance(item, list | tuple) else item if isinstance(item, bool | int | float | str) else ""


def _spelled(text: Any) -> Any:
    """The Python literal that a text spells, or what was given."""
    if not isinstance(text, str):
        return text
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _texts(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _is_writable(text: str) -> bool:
    """Whether a text can go into logs, files and paths; names that are not UTF-8 come from Linux as surrogates."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
