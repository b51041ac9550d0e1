"""The switch of the fast CPU forms."""

from __future__ import annotations

import os

import torch
from torch import Tensor

_enabled = os.environ.get("PVT_DET_FAST_CPU", "1") != "0"


class set_fast_cpu:  # noqa: N801  (used as a function, like torch.set_grad_enabled)
    """Turn the fast CPU forms on or off for the whole process; as a context manager, until the block ends.

    Example:
        >>> set_fast_cpu(False)  # from now on
        >>> with set_fast_cpu(False):  # for these lines only
        ...     maps = trunk.forward_pyramid(images)

    Args:
        enabled: Whether layers may use the fast forms. With False they compute the reference forms on every device.
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
    """Whether computations with `tensor` may take a fast CPU form now.

    They may not while a graph is compiled, exported or traced: graphs must stay portable.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return _enabled and tensor.device.type == "cpu"
