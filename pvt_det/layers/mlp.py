"""Feed-forward layers of the transformer blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.patch import Size


class Mlp(nn.Module):
    """Two linear layers with GELU between them (PVT v1).

    Args:
        dim: Channels of the tokens.
        ratio: Hidden channels as a multiple of `dim`.
    """

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * ratio)
        self.fc2 = nn.Linear(dim * ratio, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Transform `N×L×C` token by token; `size` is not needed here, and is in PVT v2."""
        return self.fc2(F.gelu(self.fc1(x)))
