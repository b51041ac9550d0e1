"""Spatial-reduction attention (PVT v1 section 3.3, equations 1 to 4) and its linear form (PVT v2 section 3.2)."""

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
        query: `N×L×C`.
        key_value: `N×S×2C`, the channels of the keys before those of the values.
        num_heads: Number of heads; divides C.

    Returns:
        `N×L×C`, the heads side by side.
    """
    if use_fast_attention(query, key_value):
        return fast_attention(query, key_value, num_heads)
    q = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    x = F.scaled_dot_product_attention(q, k, v)
    return x.transpose(1, 2).flatten(2)


class SpatialReductionAttention(nn.Module):
    """Attention whose keys and values come from a map reduced `sr_ratio` times in height and width.

    Args:
        dim: Channels of the tokens.
        num_heads: Number of heads; divides `dim`.
        sr_ratio: Reduction of the map of keys and values along each side; 1 does not reduce it.
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
            x: Tokens `N×(H·W)×C`. With `sr_ratio` 1 they may include others than the map's, such as a class token.
            size: Height and width of the map in tokens, each at least `sr_ratio`.

        Returns:
            `N×(H·W)×C`.
        """
        q = self.q(x)
        kv = self.kv(self.reduce(x, size))
        return self.proj(attend(q, kv, self.num_heads))

    def reduce(self, x: Tensor, size: Size) -> Tensor:
        """Reduce tokens `N×(H·W)×C` of a map of `size` to the `N×S×C` that keys and values are computed from."""
        if self.sr_ratio == 1:
            return x
        return self.norm(self.sr.merge(x, size))


class LinearSpatialReductionAttention(SpatialReductionAttention):
    """Attention whose keys and values come from a map pooled to 7×7, whatever its size (PVT v2 section 3.2).

    Args:
        dim: Channels of the tokens.
        num_heads: Number of heads; divides `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, sr_ratio=1)
        self.sr = PatchMerging(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)

    def reduce(self, x: Tensor, size: Size) -> Tensor:
        """Reduce tokens `N×(H·W)×C` of a map of `size` to the `N×49×C` that keys and values are computed from."""
        x = adaptive_pool(x, size, POOL_SIDE)
        x = self.sr.merge(x, (POOL_SIDE, POOL_SIDE))
        return F.gelu(self.norm(x))


def adaptive_pool(x: Tensor, size: Size, side: int) -> Tensor:
    """Compute `F.adaptive_avg_pool2d` of a map given as tokens.

    It is computed as two matrix products, one along each side of the map, because export formats do not support
    adaptive pooling of maps of dynamic size.

    Args:
        x: Tokens `N×(H·W)×C`.
        size: Height and width of their map, in tokens; may be less than `side`, and windows then share tokens.
        side: Height and width of the pooled map.

    Returns:
        `N×(side·side)×C`.
    """
    height, width = size
    rows, columns = _windows(height, side, x), _windows(width, side, x)
    x = (rows @ x.unflatten(1, size).flatten(2)) / rows.sum(1, keepdim=True)
    x = (columns @ x.unflatten(2, (width, -1))) / columns.sum(1, keepdim=True)
    return x.flatten(1, 2)


def _windows(length: int, side: int, like: Tensor) -> Tensor:
    """Return `side×length` of ones where a position belongs to a window; windows may overlap by one position."""
    window = torch.arange(side, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)
    inside = (position >= window * length // side) & (position < ((window + 1) * length + side - 1) // side)
    return inside.to(like.dtype)
