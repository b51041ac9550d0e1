"""Write weight files, each of them whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from pvt_det.errors import CheckpointError
from pvt_det.weights.reader import DIGEST_KEY
from pvt_det.weights.translate import TRUNK_PREFIX, translate


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
    content = safetensors.torch.save(plain, dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    _write_atomically(Path(path), safetensors.torch.save(plain, {**metadata, DIGEST_KEY: digest}))


def save_published(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a trunk or classifier to a `.pth` file in the published layout: a plain state dict, nothing around it.

    Args:
        path: The file; its folder is made where missing.
        tensors: A classifier's, trunk's or detector's tensors in any known layout; of a detector, the trunk is written.

    Raises:
        CheckpointError: If the layout is unknown or the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in to_published(tensors).items()}, buffer)
    _write_atomically(Path(path), buffer.getvalue())


def to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a classifier's, trunk's or detector's tensors to the published trunk's names.

    Raises:
        CheckpointError: If the layout is unknown, or keys are left that no rule of the layout knows.
    """
    translation = translate(tensors)
    if translation is None or translation.unknown:
        keys = list(tensors if translation is None else translation.unknown)
        raise CheckpointError(f"no known layout of PVT or ResNet weights: {', '.join(keys[:10])}")
    if not translation.is_detector:
        return translation.tensors
    inside = translation.tensors.items()
    return {name.removeprefix(TRUNK_PREFIX): t for name, t in inside if name.startswith(TRUNK_PREFIX)}


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
