"""Loading of an optimizer's saved state, with a check of its shapes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pvt_det.errors import CheckpointError


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, and check that its shapes match the parameters.

    PyTorch does not check them, and its fused kernels write past the end of tensors that are too small.

    Args:
        optimizer: Optimizer to load into.
        state: Result of `optimizer.state_dict()`.

    Raises:
        CheckpointError: A tensor's shape differs from its parameter's. The optimizer's state is cleared.
        RuntimeError, ValueError, KeyError: PyTorch rejects the state, for example that of a different optimizer.
    """
    optimizer.load_state_dict(state)
    for parameter, tensors in optimizer.state.items():
        for name, value in tensors.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                optimizer.state.clear()
                found, expected = tuple(value.shape), tuple(parameter.shape)
                raise CheckpointError(
                    f"its optimizer's {name} has shape {found}, but the model's parameter has {expected}"
                )
