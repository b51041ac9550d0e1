"""Check that a model's outputs are finite. Detectron2 would silently drop detections that are not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pvt_det.errors import diverged


def require_finite(tensors: Iterable[Tensor], what: str) -> None:
    """Check that the outputs of a model are finite.

    Does nothing while a graph is traced, compiled or exported.

    Args:
        tensors: Outputs of the model, of any shape.
        what: Name of the outputs in the error message, such as "scores or boxes".

    Raises:
        NumericError: An output contains NaN or infinity.
    """
    if torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling():
        return
    # Minimum and maximum suffice, because they propagate NaN. On a CPU they take a fortieth of the time of checking
    # each value. All are checked together, because the check synchronizes with the GPU.
    extremes = [extreme for tensor in tensors if tensor.numel() for extreme in _in_memory_order(tensor).aminmax()]
    if extremes and not bool(torch.isfinite(torch.stack(extremes)).all()):
        raise diverged(f"the model gives {what}")


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Permute dimensions into memory order, because `aminmax` copies tensors in other layouts."""
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
