"""Read the class names of label maps from a text or JSON file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pvt_det.errors import ConfigError
from pvt_det.utils.paths import file_fault
from pvt_det.utils.text import listed

_MAX_VALUE = 255
# "3 car", "3: car", "3, car", "3=car"
_NUMBERED = re.compile(r"(\d+)\s*[:,;=\s]\s*(\S.*)")
# "64 0 128 car", as in CamVid's label_colors.txt
_COLORED = re.compile(r"\d+[\s,]+\d+[\s,]+\d+[\s,]+([^\W\d].*)")
# "car:64,0,128::", as in CVAT's labelmap.txt
_CVAT = re.compile(r"(.+?):\d+,\d+,\d+:.*")
_EXPECTED = (
    'Expected text with one name per line (value 0 first, or "3 car" with the value), or JSON: a list of names, or '
    '{"3": "car"}.'
)


def read_class_names(path: Path) -> dict[int, str]:
    """Read class names.

    Args:
        path: A JSON file (a list of names; an object such as `{"3": "car"}` or `{"car": 3}`; or a list of objects with
            `id` and `name`, alone or as `categories`), or a text file (a name per line; a value and a name; a table
            separated by tabs with the value first and the name last; CamVid's `label_colors.txt`; CVAT's
            `labelmap.txt`). Without values, the first name is that of value 0.

    Returns:
        The names by value in the label maps.

    Raises:
        ConfigError: The file cannot be read, or its values or names are not valid.
    """
    if fault := file_fault(path):
        raise ConfigError(f"class names {path}: {fault}. {_EXPECTED}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _from_json(json.loads(text)) if path.suffix.lower() == ".json" else _from_text(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"class names {path} cannot be read ({error!r}). {_EXPECTED}") from error
    _check(path, pairs)
    return dict(sorted(pairs))


def _check(path: Path, pairs: Sequence[tuple[int, str]]) -> None:
    if not pairs:
        raise ConfigError(f"class names {path}: the file has no names. {_EXPECTED}")
    for what, items in (("value", [value for value, _ in pairs]), ("name", [name for _, name in pairs])):
        repeated = [str(item) for item, count in Counter(items).items() if count > 1]
        if repeated:
            raise ConfigError(f"class names {path}: the {what} {listed(repeated)} is given twice. Expected it once.")
    wrong = [str(value) for value, _ in pairs if not 0 <= value <= _MAX_VALUE]
    if wrong:
        raise ConfigError(f"class names {path}: value {listed(wrong)}. Expected 0 to {_MAX_VALUE}.")


def _from_json(content: Any) -> list[tuple[int, str]]:
    if isinstance(content, Mapping) and isinstance(content.get("categories"), list):
        content = content["categories"]
    if isinstance(content, Mapping):
        by_name = all(isinstance(value, int) for value in content.values())
        return [(int(value), str(key)) if by_name else (int(key), str(value)) for key, value in content.items()]
    if not isinstance(content, list):
        raise TypeError(f"a {type(content).__name__} instead of a list or an object")
    if content and isinstance(content[0], Mapping):
        return [(int(each["id"]), str(each["name"])) for each in content]
    return list(enumerate(map(str, content)))


def _from_text(text: str) -> list[tuple[int, str]]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    table = [[cell.strip() for cell in line.split("\t")] for line in lines]
    body = table if table and table[0][0].isdigit() else table[1:]
    if body and all(len(cells) > 1 and cells[0].isdigit() for cells in body):
        return [(int(cells[0]), cells[-1]) for cells in body]
    for pattern in (_COLORED, _CVAT):
        if matches := _all_match(pattern, lines):
            return list(enumerate(match[1].strip() for match in matches))
    if matches := _all_match(_NUMBERED, lines):
        return [(int(match[1]), match[2]) for match in matches]
    return list(enumerate(lines))


def _all_match(pattern: re.Pattern[str], lines: Sequence[str]) -> list[re.Match[str]]:
    matches = [match for line in lines if (match := pattern.fullmatch(line))]
    return matches if len(matches) == len(lines) else []
