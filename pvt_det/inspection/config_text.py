"""Parts of the configs that `pvt-det inspect` writes: values on one line, and the names of base files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

BASES = Path(__file__).parents[2] / "configs/base"


def base_files(path: Path, names: Iterable[str]) -> str:
    """Return the value of `_BASE_`.

    Args:
        path: The config file to write.
        names: Names of files in `configs/base`.
    """
    folder = path.resolve().parent
    # Use relative paths inside the checkout, so that it can be moved, and absolute paths elsewhere.
    is_inside = folder.is_relative_to(BASES.parents[1])
    return flow_list([os.path.relpath(BASES / name, folder) if is_inside else str(BASES / name) for name in names])


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
