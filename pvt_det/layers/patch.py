"""Patch embeddings: from images and feature maps to tokens.

Tokens are `N×L×C` with `L = H·W` in row-major order. A map made from tokens is a channels-last view of them, so
nothing is copied between stages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvt_det.layers.linear import linear

Size = tuple[int, int]


def to_map(tokens: Tensor, size: Size) -> Tensor:
    """View tokens `N×(H·W)×C` as a map `N×C×H×W` in channels-last memory; no copy."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def to_tokens(feature_map: Tensor) -> Tensor:
    """Turn a map `N×C×H×W` into tokens `N×(H·W)×C`; no copy when the map is channels-last."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


class PatchMerging(nn.Conv2d):
    """Convolution whose kernel size equals its stride, which `merge` computes on tokens as one matrix product.

    `torch.compile` would recompile the backward pass of a convolution for each new image size (torch 2.14). The weight
    is that of the convolution, `C_out×C_in×k×k`, so published tensors fit. It is stored in channels-last memory so
    that its matrix form is a view.

    Args:
        in_channels: Channels of the tokens that are merged.
        out_channels: Channels of the merged tokens.
        ratio: Kernel size and stride, in tokens.
    """

    def __init__(self, in_channels: int, out_channels: int, ratio: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=ratio, stride=ratio)
        self.ratio = ratio
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)

    def merge(self, tokens: Tensor, size: Size) -> Tensor:
        """Convolve tokens; rows and columns beyond the last full window are ignored, as in `nn.Conv2d`.

        Args:
            tokens: `N×(H·W)×C_in`.
            size: Height and width of their map, in tokens.

        Returns:
            `N×(H//k · W//k)×C_out` with k the `ratio`.
        """
        k = self.ratio
        rows, columns = size[0] // k, size[1] // k
        windows = tokens.unflatten(1, size)[:, : rows * k, : columns * k]
        windows = windows.unflatten(2, (columns, k)).unflatten(1, (rows, k)).transpose(2, 3)
        return linear(windows.reshape(-1, rows * columns, k * k * self.in_channels), self.matrix(), self.bias)

    def matrix(self) -> Tensor:
        """Return the weight as a matrix `C_out×(k·k·C_in)`, a view of it."""
        return self.weight.permute(0, 2, 3, 1).flatten(1)


class PatchEmbed(nn.Module):
    """Patch embedding of PVT v1, without overlap: convolution with kernel = stride, then LayerNorm (section 3.2).

    Args:
        in_channels: Channels of the image or of the previous stage's map.
        embed_dim: Channels of the tokens.
        patch_size: Side of a patch, in pixels of the image or map.
    """

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = PatchMerging(in_channels, embed_dim, patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Embed `N×C×H×W` as tokens `N×L×D` on a grid of `(H // patch, W // patch)`."""
        height, width = x.shape[-2:]
        tokens = self.proj.merge(to_tokens(x), (height, width))
        return self.norm(tokens), (height // self.proj.ratio, width // self.proj.ratio)


class OverlapPatchEmbed(nn.Module):
    """Overlapping patch embedding of PVT v2: strided, padded convolution, then LayerNorm (section 3.1).

    Args:
        in_channels: Channels of the image or of the previous stage's map.
        embed_dim: Channels of the tokens.
        kernel_size: Side of a patch, odd, in pixels of the image or map; half of it is padded.
        stride: Distance between neighboring patches, in pixels of the image or map.
    """

    def __init__(self, in_channels: int, embed_dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Embed `N×C×H×W` as tokens `N×L×D` on a grid of `(⌈H / stride⌉, ⌈W / stride⌉)`."""
        x = self.proj(x.contiguous(memory_format=torch.channels_last))
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])
