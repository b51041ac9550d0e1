"""Parse large JSON files fast, and refuse objects in which a key has two different values."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

# Values that can contain a colon.
_WITHOUT_LISTS, _WITH_LISTS = frozenset((str, dict)), frozenset((str, dict, list))


def loads(content: bytes) -> Any:
    """Parse JSON as `json.loads` does, which also accepts NaN and infinity, but refuse conflicting keys.

    Args:
        content: The JSON text, in UTF-8.

    Returns:
        The value.

    Raises:
        ValueError: The text is not JSON or not UTF-8, or an object has a key with two different values.
        RecursionError: Lists and objects are nested too deeply.
    """
    try:
        with garbage_kept():
            value = msgspec.json.decode(content)
            if _is_complete(value, content):
                return value
    except (msgspec.MsgspecError, RecursionError):
        pass
    # Several times slower. It decides about everything unusual.
    return json.loads(content, object_pairs_hook=_reject_conflicting_keys)


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Pause the search for garbage, which takes most of the time in which millions of objects are created."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _is_complete(value: Any, content: bytes) -> bool:
    """Return whether no key of any object was dropped as a duplicate.

    Every key in the text is followed by a colon. There are as many colons as keys and as colons in the strings, unless
    a key was dropped.
    """
    if b"\\u003" in content:  # a colon may be written so in a string, and would not be counted in the text
        return False
    expected = content.count(b":")
    # Most lists hold numbers, or lists of them, so that searching only the outermost ones is faster.
    return any(_count_colons(value, depth) == expected for depth in (1, sys.maxsize))


def _count_colons(value: Any, depth: int) -> int:
    """Count keys, and colons in strings, of an object. In lists, only those at less than `depth` are counted."""
    total, level, objects = 0, 0, [value] if isinstance(value, dict) else []
    while objects:
        total += sum(map(len, objects))
        searched = _WITH_LISTS if level < depth else _WITHOUT_LISTS
        level += 1
        values = [v for each in objects for v in each.values() if v.__class__ in searched]
        objects = []
        for v in values:
            if v.__class__ is str:
                total += v.count(":")
            elif v.__class__ is dict:
                objects.append(v)
            elif v and v[0].__class__ in (dict, str):
                objects += [item for item in v if item.__class__ is dict]
                total += sum(item.count(":") for item in v if item.__class__ is str)
    return total


def _reject_conflicting_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of two values of a key, Python's default silently keeps only the last."""
    result = dict(pairs)
    if len(result) < len(pairs):
        for name, value in pairs:
            if value != result[name]:
                raise ValueError(f"the key {name!r} appears twice in one object with different values")
    return result
