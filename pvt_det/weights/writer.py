"""Write weight files atomically."""

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
        path: The file. Missing parent folders are created.
        tensors: Tensors by name, on any device. They are written as contiguous tensors.
        metadata: Strings that describe the file, written to its header.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # The empty entry makes both headers identical except for its value.
    digest = safetensors_digest(io.BytesIO(safetensors.torch.save(plain, {**metadata, DIGEST_KEY: ""})))
    _write(Path(path), safetensors.torch.save(plain, {**metadata, DIGEST_KEY: digest}))


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write tensors to a `.pth` file, atomically.

    Args:
        path: The file. Missing parent folders are created.
        content: Tensors by name, as in the published layout, or a dictionary of them under "model", as in Detectron2's.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(_detached(content), buffer)
    _write(Path(path), buffer.getvalue())


def _detached(content: Mapping[str, Any]) -> dict[str, Any]:
    # Cloned because torch.save would write the whole storage behind a view.
    return {name: _detached(value) if isinstance(value, Mapping) else _copied(value) for name, value in content.items()}


def _copied(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}).") from error
