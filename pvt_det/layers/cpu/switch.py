"""Whether a computation may take a fast CPU form."""

from __future__ import annotations

import torch
from torch import Tensor


def use_fast_cpu(tensor: Tensor) -> bool:
    """Whether computations with `tensor` may take a fast CPU form now.

    They may not while a graph is compiled, exported or traced: graphs must stay portable.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return tensor.device.type == "cpu"
