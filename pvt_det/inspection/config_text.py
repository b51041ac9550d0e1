"""Parts of the configs that `pvt-det inspect` writes: values on one line, and base configs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml


def base_files(names: Iterable[str]) -> str:
    """Return the value of `_BASE_`: recipes by name, so that the config can be copied to another machine.

    Args:
        names: Names of files in `configs/base`.
    """
    return "[" + ", ".join(f"base/{name.removesuffix('.yaml')}" for name in names) + "]"


def scalar(value: Any) -> str:
    """Format a value as YAML on one line, with any characters quoted.

    Args:
        value: A string or another scalar.
    """
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9).strip()


def flow_list(values: Iterable[Any]) -> str:
    """Format strings or numbers as a YAML list on one line.

    Args:
        values: The values.
    """
    return "[" + ", ".join(scalar(value) if isinstance(value, str) else f"{value:g}" for value in values) + "]"
