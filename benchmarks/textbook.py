"""The models as written in the papers, as a reference for tests and benchmarks.

Attention is `softmax(q kᵀ / √d) v` with the whole matrix in memory. Patch embeddings are convolutions on contiguous
`N×C×H×W` maps. Tokens are transposed to maps and back for every convolution, and position embeddings are resized in
every forward pass. The package itself does not use this module.
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
    """The textbook form of a trunk, with a copy of its weights.

    Args:
        trunk: Model to copy, whose `forward` and `forward_pyramid` are reimplemented.
    """

    # Typed as Any, because the layers are accessed by their published names.
    trunk: Any

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(trunk)
        for parameter in self.trunk.parameters():
            parameter.data = parameter.data.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            x: Images `N×3×H×W`.

        Returns:
            Logits `N×K` for K classes.
        """
        if not isinstance(self.trunk, PyramidVisionTransformer):
            return self.trunk.head(self.forward_pyramid(x)[3].flatten(2).mean(dim=2))
        for i in range(1, 4):
            x = self._stage(i, pad_image(x) if i == 1 else x)
        tokens, size = self._embed(4, x)
        class_token = (self.trunk.cls_token + self.trunk.pos_embed4[:, :1]).expand(x.shape[0], -1, -1)
        tokens = torch.cat([class_token, tokens], dim=1)
        return self.trunk.head(self.trunk.norm(self._blocks(4, tokens, size))[:, 0])

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Compute the four feature maps.

        Args:
            x: Images `N×3×H×W`.

        Returns:
            Maps `N×Cᵢ×Hᵢ×Wᵢ` of the four stages.
        """
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
    """Apply a layer with PyTorch's matrix product instead of the layer's own choice."""
    return F.linear(x, layer.weight, layer.bias)
