"""Putting an optimizer's saved state back."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pvt_det.errors import CheckpointError


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what `optimizer.state_dict()` gave, and compare its shapes with the parameters'.

    PyTorch does not, and its fused kernels write past the end of what is too small.

    Raises:
        CheckpointError: A tensor has not its parameter's shape; the optimizer is left without state.
        RuntimeError, ValueError, KeyError: As PyTorch raises them for the state of another optimizer.
    """
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                optimizer.state.clear()
                found, wanted = tuple(value.shape), tuple(parameter.shape)
                raise CheckpointError(f"its optimizer's {name} is {found} where the model's parameter is {wanted}")
