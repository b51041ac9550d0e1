"""Helpers to compute in chunks of tokens.

On a CPU, moving the large inner tensors of MLPs and attention between memory and cache takes most of the time beyond
the matrix products. Those of a chunk stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Hidden values or scores that one thread works on at a time: 4 MB in fp32, a share of the last-level cache.
CHUNK_VALUES = 1 << 20


def chunk_length(hidden: int, itemsize: int = 4) -> int:
    """Return the number of tokens in a chunk, at least 1.

    Args:
        hidden: Hidden channels, or attention scores, of each token.
        itemsize: Bytes of each of these values.
    """
    return max(1, torch.get_num_threads() * CHUNK_VALUES * 4 // (hidden * itemsize))


def accumulator(tensor: Tensor) -> Tensor:
    """Return zeros of the shape of `tensor` to sum chunks in, at least in fp32: a sum in bf16 would lose digits."""
    return torch.zeros(tensor.shape, dtype=torch.promote_types(tensor.dtype, torch.float32))
