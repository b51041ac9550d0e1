"""SHA-256 digests of files, plain values and weights."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Threads hide the latency of a disk or a network. Each takes many files at a time, because handing over a file takes as
# long as reading it.
_THREADS, _FILES_AT_A_TIME = 16, 200


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


def folder_digest(folder: str | Path, suffix: str) -> str:
    """Compute the SHA-256 of the names and contents of the files in a folder and its subfolders.

    Args:
        folder: The folder, which may not exist.
        suffix: Suffix of the files that count, in lower case, such as ".png".

    Returns:
        The digest as 64 hex digits, which does not depend on where the folder is. "" without such files.

    Raises:
        OSError: A file cannot be read.
    """
    # Path.rglob takes longer than reading the files.
    found = glob.glob("**/*", root_dir=folder, recursive=True)  # noqa: PTH207
    names = sorted(name for name in found if name.lower().endswith(suffix))
    batches = [names[start : start + _FILES_AT_A_TIME] for start in range(0, len(names), _FILES_AT_A_TIME)]

    def digests(batch: Sequence[str]) -> list[str]:
        return [hashlib.sha256(Path(folder, name).read_bytes()).hexdigest() for name in batch]

    with ThreadPoolExecutor(_THREADS) as pool:
        contents = chain.from_iterable(pool.map(digests, batches))
        return value_digest(list(zip(names, contents, strict=True))) if names else ""


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
