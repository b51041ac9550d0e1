"""Enable or disable the fast CPU implementations."""

from __future__ import annotations

import os

import torch
from torch import Tensor

_enabled = os.environ.get("PVT_DET_FAST_CPU", "1") != "0"


class set_fast_cpu:  # noqa: N801  (used as a function, like torch.set_grad_enabled)
    """Enable or disable the fast CPU implementations in the whole process, or within a `with` block.

    Example:
        >>> set_fast_cpu(False)  # from now on
        >>> with set_fast_cpu(False):  # only in this block
        ...     maps = trunk.forward_pyramid(images)

    Args:
        enabled: Whether layers may use the fast implementations. If false, they use the reference implementations on
            every device.
    """

    def __init__(self, enabled: bool) -> None:
        global _enabled
        self._previous = _enabled
        _enabled = enabled

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _enabled
        _enabled = self._previous


def use_fast_cpu(tensor: Tensor) -> bool:
    """Return whether computations with a tensor may use a fast CPU implementation.

    False while a graph is compiled, exported or traced, because graphs must stay portable.

    Args:
        tensor: Input of the computation. Only tensors on a CPU can use a fast implementation.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return _enabled and tensor.device.type == "cpu"
