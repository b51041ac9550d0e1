"""The linear layer of the transformer blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.cpu.onednn import fast_linear, use_fast_linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x weightᵀ + bias` as `F.linear` does, with the fast CPU kernel where possible.

    Args:
        x: Input `…×K`.
        weight: Weight `M×K`.
        bias: Bias `M`, or None.

    Returns:
        Output `…×M`.
    """
    if use_fast_linear(x, weight, bias):
        return fast_linear(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` that calls `linear` above."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the linear layer.

        Args:
            input: Input `…×in_features`.

        Returns:
            Output `…×out_features`.
        """
        return linear(input, self.weight, self.bias)
