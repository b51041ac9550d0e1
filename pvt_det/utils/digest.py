"""SHA-256 digests of files and of plain values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def file_digest(path: str | Path) -> str:
    """Compute the SHA-256 of a file, which is read in blocks.

    Args:
        path: The file.

    Returns:
        The digest as 64 hex digits.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_digest(value: Any) -> str:
    """Compute the SHA-256 of a plain value, written as JSON with sorted keys.

    Args:
        value: Strings, numbers, booleans, None, and lists, tuples and dictionaries of them. Lists and tuples are equal.

    Returns:
        The digest as 64 hex digits.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
