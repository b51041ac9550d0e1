"""Attention over a shrunk map: spatial reduction (PVT v1 section 3.3, equations 1 to 4), pooling (PVT v2, linear)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.cpu.chunked import BandedAttention, scaled
from pvt_det.layers.cpu.onednn import HAS_ONEDNN, Linear, runs_on_cpu
from pvt_det.layers.patch import PatchMerging, Size

POOL_SIDE = 7
# Scores of one head from which bands of oneDNN's products are faster on a CPU: in fp32 than PyTorch's fused kernel, in
# bf16 than plain products.
MANY_SCORES = {torch.bfloat16: 1 << 20} | ({torch.float32: 1 << 17} if HAS_ONEDNN else {})


def attend(query: Tensor, key_value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention of tokens to tokens by the fastest way there is on the device.

    Args:
        query: `N×L×C`.
        key_value: `N×S×2C`, the keys' channels before the values'.
        num_heads: Divides C.

    Returns:
        `N×L×C`, heads side by side.
    """
    on_cpu = runs_on_cpu(query)
    if on_cpu and query.shape[1] * key_value.shape[1] >= MANY_SCORES.get(query.dtype, math.inf):
        return BandedAttention.apply(query, key_value, num_heads)
    q = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    # PyTorch's fused kernel takes several times as long in bf16 on a CPU.
    fused = not on_cpu or query.dtype != torch.bfloat16
    out = F.scaled_dot_product_attention(q, k, v) if fused else (scaled(q) @ k.mT).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


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
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, dim * 2)
        self.proj = Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = PatchMerging(dim, dim, sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend within `N×(H·W)×C`, where `size` is `(H, W)`, each at least `sr_ratio`.

        With `sr_ratio` 1, `x` may hold tokens besides those of the map (the class token).
        """
        return self.query(x, self.key_value(x, size))

    def query(self, x: Tensor, key_value: Tensor) -> Tensor:
        """Let any number of tokens, `N×L×C`, attend to `key_value`, `N×S×2C`."""
        return self.proj(attend(self.q(x), key_value, self.num_heads))

    def key_value(self, x: Tensor, size: Size) -> Tensor:
        """Keys and values of all tokens of the map, `N×(H·W)×C` to `N×S×2C`."""
        return self.kv(self.source(x, size))

    def source(self, x: Tensor, size: Size) -> Tensor:
        """Tokens that keys and values are made of, `N×S×C`."""
        return self.norm(self.sr.merge(x, size)) if self.sr_ratio > 1 else x


class LinearSpatialReductionAttention(SpatialReductionAttention):
    """Attention whose keys and values come from a map pooled to 7×7, whatever its size (PVT v2 section 3.2).

    Args:
        dim: Channels of the tokens.
        num_heads: Attention heads; divides `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, sr_ratio=1)
        self.sr = PatchMerging(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)

    def source(self, x: Tensor, size: Size) -> Tensor:
        """Tokens that keys and values are made of, `N×49×C`."""
        pooled = adaptive_pool(x, size, POOL_SIDE)
        return F.gelu(self.norm(self.sr.merge(pooled, (POOL_SIDE, POOL_SIDE))))


def adaptive_pool(x: Tensor, size: Size, side: int) -> Tensor:
    """Average `N×(H·W)×C` over the windows of `F.adaptive_avg_pool2d`, giving `N×(side·side)×C`.

    Two matrix products, one along each side of the map, so that export formats without adaptive pooling and dynamic
    sizes are served too. A map smaller than `side` is fine: windows then share pixels.
    """
    height, width = size
    rows, columns = _windows(height, side, x), _windows(width, side, x)
    x = (rows @ x.unflatten(1, size).flatten(2)) / rows.sum(1, keepdim=True)
    x = (columns @ x.unflatten(2, (width, -1))) / columns.sum(1, keepdim=True)
    return x.flatten(1, 2)


def _windows(length: int, side: int, like: Tensor) -> Tensor:
    """Ones where a position of `length` belongs to a window, `side×length`; windows may overlap by one position."""
    window = torch.arange(side, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)
    inside = (position >= window * length // side) & (position < ((window + 1) * length + side - 1) // side)
    return inside.to(like.dtype)
