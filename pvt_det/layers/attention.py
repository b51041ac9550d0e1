"""Spatial-reduction attention (PVT v1 section 3.3) and linear spatial-reduction attention (PVT v2 section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.cpu.attention import fast_attention, use_fast_attention
from pvt_det.layers.linear import Linear
from pvt_det.layers.patch import PatchMerging, Size

POOL_SIDE = 7


def attend(query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:
    """Compute multi-head attention.

    Args:
        query: Queries `N×L×C`.
        key_value: Keys and values `N×S×2C`, concatenated along the channels.
        num_heads: Number of heads. Must divide C.

    Returns:
        Tokens `N×L×C`, with the heads concatenated along the channels.
    """
    if use_fast_attention(query, key_value):
        return fast_attention(query, key_value, num_heads)
    q = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    x = F.scaled_dot_product_attention(q, k, v)
    return x.transpose(1, 2).flatten(2)


class SpatialReductionAttention(nn.Module):
    """Attention with keys and values from a map of `1/sr_ratio` the height and width (equations 1 to 4).

    Args:
        dim: Channels of the tokens.
        num_heads: Number of heads. Must divide `dim`.
        sr_ratio: Factor by which each side of the map of keys and values is reduced. 1 does not reduce it.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, dim * 2)
        self.proj = Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = PatchMerging(dim, dim, sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Compute attention among the tokens of a map.

        Args:
            x: Tokens `N×(H·W)×C`. If `sr_ratio` is 1, additional tokens such as a class token are allowed.
            size: Height and width of the map in tokens, each at least `sr_ratio`.

        Returns:
            Tokens with the shape of `x`.
        """
        q = self.q(x)
        kv = self.kv(self.reduce(x, size))
        return self.proj(attend(q, kv, self.num_heads))

    def reduce(self, x: Tensor, size: Size) -> Tensor:
        """Reduce the map from which keys and values are computed.

        Args:
            x: Tokens `N×(H·W)×C`.
            size: Height and width of the map in tokens.

        Returns:
            Tokens `N×S×C`, with S = (H // sr_ratio)·(W // sr_ratio).
        """
        if self.sr_ratio == 1:
            return x
        return self.norm(self.sr.merge(x, size))


class LinearSpatialReductionAttention(SpatialReductionAttention):
    """Attention whose keys and values are computed from a map pooled to 7×7 (PVT v2 section 3.2).

    Args:
        dim: Channels of the tokens.
        num_heads: Number of heads. Must divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, sr_ratio=1)
        self.sr = PatchMerging(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)

    def reduce(self, x: Tensor, size: Size) -> Tensor:
        """Pool the map from which keys and values are computed.

        Args:
            x: Tokens `N×(H·W)×C`.
            size: Height and width of the map in tokens.

        Returns:
            Tokens `N×49×C`.
        """
        x = adaptive_pool(x, size, POOL_SIDE)
        x = self.sr.merge(x, (POOL_SIDE, POOL_SIDE))
        return F.gelu(self.norm(x))


def adaptive_pool(x: Tensor, size: Size, side: int) -> Tensor:
    """Compute `F.adaptive_avg_pool2d` of a map given as tokens.

    Pooling is computed as two matrix products, one along each side of the map, because export formats do not support
    adaptive pooling with dynamic sizes.

    Args:
        x: Tokens `N×(H·W)×C`.
        size: Height and width of the map in tokens. If less than `side`, windows overlap.
        side: Height and width of the pooled map.

    Returns:
        Tokens `N×(side·side)×C`.
    """
    height, width = size
    rows, columns = _windows(height, side, x), _windows(width, side, x)
    x = (rows @ x.unflatten(1, size).flatten(2)) / rows.sum(1, keepdim=True)
    x = (columns @ x.unflatten(2, (width, -1))) / columns.sum(1, keepdim=True)
    return x.flatten(1, 2)


def _windows(length: int, side: int, like: Tensor) -> Tensor:
    """Return a mask `side×length` of the positions of each window. Windows overlap by at most one position."""
    window = torch.arange(side, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)
    inside = (position >= window * length // side) & (position < ((window + 1) * length + side - 1) // side)
    return inside.to(like.dtype)
