"""The same models written as the papers write them: the reference that tests and benchmarks compare with.

Attention is `softmax(q kᵀ / √d) v` with the whole matrix in memory, patches are convolutions on contiguous `N×C×H×W`
maps, tokens are transposed into maps and back wherever a convolution is met, and position embeddings are resized in
every forward pass. Nothing else in the package uses this.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.attention import LinearSpatialReductionAttention, SpatialReductionAttention
from pvt_det.layers.block import Block
from pvt_det.layers.mlp import ConvMlp, Mlp
from pvt_det.layers.patch import Size
from pvt_det.layers.position import resize_position
from pvt_det.models.pvt import PyramidVisionTransformer
from pvt_det.models.trunk import Trunk, pad_image


class Textbook(nn.Module):
    """Computes what `trunk` computes, with a copy of its weights and the same `forward` and `forward_pyramid`."""

    # Of the model's own class, whose layers are reached by their published names.
    trunk: Any

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(trunk)
        for parameter in self.trunk.parameters():
            parameter.data = parameter.data.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images `N×3×H×W`."""
        if not isinstance(self.trunk, PyramidVisionTransformer):
            return self.trunk.head(self.forward_pyramid(x)[3].flatten(2).mean(dim=2))
        for i in range(1, 4):
            x = self._stage(i, pad_image(x) if i == 1 else x)
        tokens, size = self._embed(4, x)
        class_token = (self.trunk.cls_token + self.trunk.pos_embed4[:, :1]).expand(x.shape[0], -1, -1)
        tokens = torch.cat([class_token, tokens], dim=1)
        return self.trunk.head(self.trunk.norm(self._blocks(4, tokens, size))[:, 0])

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Return the four maps of images `N×3×H×W`."""
        maps = [pad_image(x)]
        for i in range(1, 5):
            maps.append(self._stage(i, maps[-1]))
        return maps[1:]

    def _stage(self, i: int, x: Tensor) -> Tensor:
        tokens, size = self._embed(i, x)
        tokens = self._blocks(i, tokens, size)
        if not isinstance(self.trunk, PyramidVisionTransformer):
            tokens = getattr(self.trunk, f"norm{i}")(tokens)
        return _to_map(tokens, size).contiguous()

    def _blocks(self, i: int, tokens: Tensor, size: Size) -> Tensor:
        for block in getattr(self.trunk, f"block{i}"):
            tokens = _block(block, tokens, size)
        return tokens

    def _embed(self, i: int, x: Tensor) -> tuple[Tensor, Size]:
        embed = getattr(self.trunk, f"patch_embed{i}")
        x = embed.proj(x)
        size = (x.shape[2], x.shape[3])
        tokens = embed.norm(x.flatten(2).transpose(1, 2))
        if isinstance(self.trunk, PyramidVisionTransformer):
            table = getattr(self.trunk, f"pos_embed{i}")
            tokens = tokens + resize_position(table[:, 1:] if i == 4 else table, self.trunk.grids[i - 1], size)
        return tokens, size


def _to_map(tokens: Tensor, size: Size) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size)


def _block(block: Block, x: Tensor, size: Size) -> Tensor:
    x = x + block.drop_path(_attention(block.attn, block.norm1(x), size))
    return x + block.drop_path(_mlp(block.mlp, block.norm2(x), size))


def _attention(layer: SpatialReductionAttention, x: Tensor, size: Size) -> Tensor:
    n, length, dim = x.shape
    heads = layer.num_heads
    q = _linear(layer.q, x).reshape(n, length, heads, dim // heads).permute(0, 2, 1, 3)
    if isinstance(layer, LinearSpatialReductionAttention):
        x = layer.sr(F.adaptive_avg_pool2d(_to_map(x, size), 7)).flatten(2).transpose(1, 2)
        x = F.gelu(layer.norm(x))
    elif layer.sr_ratio > 1:
        x = layer.norm(layer.sr(_to_map(x, size)).flatten(2).transpose(1, 2))
    k, v = _linear(layer.kv, x).reshape(n, -1, 2, heads, dim // heads).permute(2, 0, 3, 1, 4)
    weights = ((q @ k.transpose(-2, -1)) * (dim // heads) ** -0.5).softmax(dim=-1)
    return _linear(layer.proj, (weights @ v).transpose(1, 2).reshape(n, length, dim))


def _mlp(layer: Mlp | ConvMlp, x: Tensor, size: Size) -> Tensor:
    x = _linear(layer.fc1, x)
    if isinstance(layer, ConvMlp):
        x = layer.dwconv.dwconv(_to_map(F.relu(x) if layer.relu else x, size)).flatten(2).transpose(1, 2)
    return _linear(layer.fc2, F.gelu(x))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """PyTorch's own product, whatever the layer would take."""
    return F.linear(x, layer.weight, layer.bias)
