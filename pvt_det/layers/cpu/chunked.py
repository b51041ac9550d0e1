"""Helpers for computing in chunks of tokens.

On a CPU, MLPs and attention spend most of the time outside their matrix products on moving large intermediate tensors
between memory and cache. Those of a chunk stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Number of hidden values or scores that a thread processes at a time: 4 MB in fp32, a part of the last-level cache.
CHUNK_VALUES = 1 << 20


def chunk_length(hidden: int, itemsize: int = 4) -> int:
    """Compute the number of tokens in a chunk, at least 1.

    Args:
        hidden: Number of hidden channels or attention scores per token.
        itemsize: Size of each of these values in bytes.
    """
    return max(1, torch.get_num_threads() * CHUNK_VALUES * 4 // (hidden * itemsize))


def accumulator(tensor: Tensor) -> Tensor:
    """Create zeros in which to sum chunks, at least in fp32, because sums in bf16 lose precision.

    Args:
        tensor: Tensor with the shape of the sum.
    """
    return torch.zeros(tensor.shape, dtype=torch.promote_types(tensor.dtype, torch.float32))
