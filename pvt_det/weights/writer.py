"""Write weight files, each of them whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pvt_det.errors import CheckpointError
from pvt_det.utils.files import write_atomically
from pvt_det.weights.reader import DIGEST_KEY, safetensors_digest


def save_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a `.safetensors` file, atomically, with a checksum that `read_checkpoint` verifies.

    Args:
        path: The file; its folder is made where missing.
        tensors: Tensors by name, on any device; written contiguous.
        metadata: Text about the file, for its header.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # An empty entry, so that both headers are alike but for its value.
    digest = safetensors_digest(io.BytesIO(safetensors.torch.save(plain, {**metadata, DIGEST_KEY: ""})))
    _write(Path(path), safetensors.torch.save(plain, {**metadata, DIGEST_KEY: digest}))


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a `.pth` file, atomically: tensors by name, the published layout, or those under "model", Detectron2's.

    Args:
        path: The file; its folder is made where missing.
        content: Tensors, or dictionaries of tensors, by name.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(_detached(content), buffer)
    _write(Path(path), buffer.getvalue())


def _detached(content: Mapping[str, Any]) -> dict[str, Any]:
    # Copies, so that a view does not bring the whole memory behind it into the file.
    return {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else _detached(value)
        for name, value in content.items()
    }


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
