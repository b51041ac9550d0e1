"""Convert a config value to the type of its key's default, and check that it is finite."""

from __future__ import annotations

import ast
from typing import Any

from pvt_det.config.rules import shown
from pvt_det.config.table import TABLE
from pvt_det.errors import ConfigError

_LARGEST = 2**63
_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    tuple: "a list",
}


def coerce(value: Any, default: Any, key: str, where: str) -> Any:
    """Convert `value` to the type of the key's `default`.

    Integers become floats, and lists and tuples become each other, as the default requires. Strings such as `1e-4` or
    `(60000, 80000)`, which YAML does not parse as numbers or lists, are parsed as Python literals.

    Args:
        value: Value as read from a file or the command line.
        default: Default value of the key.
        key: Dotted name of the key.
        where: Name of the file, or "command line", for messages.

    Returns:
        The converted value.

    Raises:
        ConfigError: The value has the wrong type, or a number is not finite.
    """
    if default is None and (value is None or _parse_literal(value) is None):
        return None
    rule = TABLE[key].rule if key in TABLE else None
    example = default
    if rule is not None and default in (None, [], ()):  # does not show the type
        example = rule.example if default is None else type(default)(rule.example)
    if rule is not None and rule.may_be_list and isinstance(parsed := _parse_literal(value), list | tuple):
        value, example = parsed, [example]
    result = _match(value, example, key, where)
    if not all(map(_is_writable, _strings(result))):
        raise ConfigError(f"{where}: {key} = {shown(value)}: expected a valid Unicode string without null bytes.")
    is_limited = rule is None or not rule.may_be_infinite
    if is_limited and not all(-_LARGEST <= number <= _LARGEST for number in _numbers(result)):
        raise ConfigError(f"{where}: {key} = {shown(value)}: expected finite numbers of at most 2^63.")
    return result


def _match(value: Any, example: Any, key: str, where: str) -> Any:
    if not isinstance(example, str):
        value = _parse_literal(value)
    if isinstance(example, list | tuple) and isinstance(value, list | tuple):
        # An empty example does not show the type of its elements; they need only be plain values.
        items = [_match_item(item, example[0] if example else _plain_example(item), key, where) for item in value]
        return type(example)(items)
    if type(example) is float and type(value) is int and abs(value) <= _LARGEST:
        return float(value)
    if type(value) is type(example):
        return value
    raise _wrong_type(value, example, key, where)


def _match_item(value: Any, example: Any, key: str, where: str) -> Any:
    """Match a list element. Floats are accepted for integers, because anchor sizes are often fractions."""
    if type(example) is int and type(value) is float:
        return value
    return _match(value, example, key, where)


def _wrong_type(value: Any, example: Any, key: str, where: str) -> ConfigError:
    expected = _NAMES.get(type(example), type(example).__name__)
    hint = (
        f" Write [{value}] for a list of one element."
        if isinstance(example, list | tuple) and value is not None
        else ""
    )
    return ConfigError(f"{where}: {key} = {shown(value)}: expected {expected}, such as {example!r}.{hint}")


def _plain_example(item: Any) -> Any:
    """Return an example that matches `item` if it is a scalar or a list, and that does not match otherwise."""
    return [] if isinstance(item, list | tuple) else item if isinstance(item, bool | int | float | str) else ""


def _parse_literal(text: Any) -> Any:
    """Parse a string as a Python literal; return the input unchanged if it is not one."""
    if not isinstance(text, str):
        return text
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _strings(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def _is_writable(text: str) -> bool:
    """Return whether a string can be written to logs and files; non-UTF-8 names on Linux contain surrogates."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
