"""A model that diverged says so; Detectron2 would drop what is not finite and report that it found nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pvt_det.errors import NumericError


def require_finite(tensors: Iterable[Tensor], what: str) -> None:
    """Check outputs of a model; a graph that is being traced, compiled or exported gets no check.

    Raises:
        NumericError: One of them holds NaN or infinity.
    """
    if torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling():
        return
    # One answer for all tensors, since a GPU has to be waited for.
    answers = [torch.isfinite(tensor).all() for tensor in tensors]
    if answers and not bool(torch.stack(answers).all()):
        raise NumericError(
            f"the model gives {what} that are NaN or infinite; its weights have probably diverged: use an earlier "
            "checkpoint, or train with a lower learning rate"
        )
