"""Spatial-reduction attention (PVT v1 section 3.3, equations 1 to 4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.patch import PatchMerging, Size


def attend(query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention of tokens to tokens by PyTorch's fused kernel.

    Args:
        query: `N×L×C`.
        key_value: `N×S×2C`, the keys' channels before the values'.
        num_heads: Divides C.

    Returns:
        `N×L×C`, heads side by side.
    """
    q = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SpatialReductionAttention(nn.Module):
    """Attention whose keys and values come from a map shrunk `sr_ratio` times in height and width.

    Args:
        dim: Channels of the tokens.
        num_heads: Attention heads; divides `dim`.
        sr_ratio: How many times the map of keys and values is shrunk along each side; 1 leaves it as it is.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim * 2)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = PatchMerging(dim, dim, sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend within `N×(H·W)×C`, where `size` is `(H, W)`, each at least `sr_ratio`.

        With `sr_ratio` 1, `x` may hold tokens besides those of the map (the class token).
        """
        source = self.norm(self.sr.merge(x, size)) if self.sr_ratio > 1 else x
        return self.proj(attend(self.q(x), self.kv(source), self.num_heads))
