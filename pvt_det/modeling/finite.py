"""A model that diverged says so; Detectron2 would drop what is not finite and report that it found nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pvt_det.errors import diverged


def require_finite(tensors: Iterable[Tensor], what: str) -> None:
    """Check outputs of a model; a graph that is being traced, compiled or exported gets no check.

    Raises:
        NumericError: One of them holds NaN or infinity.
    """
    if torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling():
        return
    # Both ends tell, NaN included, in a fortieth of the time that asking each number takes on a CPU. They are looked at
    # together, since a GPU has to be waited for.
    ends = [end for tensor in tensors if tensor.numel() for end in _as_stored(tensor).aminmax()]
    if ends and not bool(torch.isfinite(torch.stack(ends)).all()):
        raise diverged(f"the model gives {what}")


def _as_stored(tensor: Tensor) -> Tensor:
    """The tensor with its dimensions in the order of memory; `aminmax` copies one that is not, as channels-last."""
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
