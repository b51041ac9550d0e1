"""SHA-256 digests of files, plain values and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of the names, types, shapes and values of weights.

    Args:
        weights: A model's state dict, on any device.

    Returns:
        The digest as 64 hex digits.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
