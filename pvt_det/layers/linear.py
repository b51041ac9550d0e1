"""The linear layer of the transformer blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.cpu.onednn import fast_linear, use_fast_linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x weightᵀ + bias`, as `F.linear` does.

    Args:
        x: `…×K`.
        weight: `M×K`.
        bias: `M`, or None.

    Returns:
        `…×M`.
    """
    if use_fast_linear(x, weight, bias):
        return fast_linear(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear`, through `linear` above."""

    def forward(self, input: Tensor) -> Tensor:
        """Transform `…×in_features` into `…×out_features`."""
        return linear(input, self.weight, self.bias)
