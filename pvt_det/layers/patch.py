"""Patch embeddings, which turn images and feature maps into tokens.

Tokens are `N×L×C` with `L = H·W` in row-major order. Feature maps are channels-last views of tokens, so nothing is
copied between stages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvt_det.layers.linear import linear

Size = tuple[int, int]


def to_map(tokens: Tensor, size: Size) -> Tensor:
    """View tokens as a feature map in channels-last memory, without a copy.

    Args:
        tokens: Tokens `N×(H·W)×C`.
        size: Height and width of the map in tokens.

    Returns:
        Feature map `N×C×H×W`.
    """
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def to_tokens(feature_map: Tensor) -> Tensor:
    """Turn a feature map into tokens, without a copy if it is in channels-last memory.

    Args:
        feature_map: Feature map `N×C×H×W`.

    Returns:
        Tokens `N×(H·W)×C`.
    """
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


class PatchMerging(nn.Conv2d):
    """Convolution whose kernel size equals its stride.

    `merge` computes it on tokens as one matrix product, because `torch.compile` would recompile the backward pass of a
    convolution for each new image size (torch 2.14). The weight has the shape `C_out×C_in×k×k` of a convolution, so
    published tensors fit. It is stored in channels-last memory so that its matrix form is a view.

    Args:
        in_channels: Channels of the input tokens.
        out_channels: Channels of the merged tokens.
        ratio: Kernel size and stride in tokens.
    """

    def __init__(self, in_channels: int, out_channels: int, ratio: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=ratio, stride=ratio)
        self.ratio = ratio
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)

    def merge(self, tokens: Tensor, size: Size) -> Tensor:
        """Convolve a map of tokens.

        As in `nn.Conv2d`, rows and columns after the last full window are ignored.

        Args:
            tokens: Tokens `N×(H·W)×C_in`.
            size: Height and width of the map in tokens.

        Returns:
            Tokens `N×(H//k · W//k)×C_out`, where k is `ratio`.
        """
        k = self.ratio
        rows, columns = size[0] // k, size[1] // k
        windows = tokens.unflatten(1, size)[:, : rows * k, : columns * k]
        windows = windows.unflatten(2, (columns, k)).unflatten(1, (rows, k)).transpose(2, 3)
        return linear(windows.reshape(-1, rows * columns, k * k * self.in_channels), self.matrix(), self.bias)

    def matrix(self) -> Tensor:
        """View the weight as a matrix `C_out×(k·k·C_in)`."""
        return self.weight.permute(0, 2, 3, 1).flatten(1)


class PatchEmbed(nn.Module):
    """Non-overlapping patch embedding of PVT v1: convolution, then LayerNorm (section 3.2).

    Args:
        in_channels: Channels of the image or feature map.
        embed_dim: Channels of the tokens.
        patch_size: Side of a patch in pixels of the image or feature map.
    """

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = PatchMerging(in_channels, embed_dim, patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Embed an image or feature map as tokens.

        Args:
            x: Images or feature map `N×C×H×W`.

        Returns:
            Tokens `N×L×D`, and the size of their grid, `(H // patch_size, W // patch_size)`.
        """
        height, width = x.shape[-2:]
        tokens = self.proj.merge(to_tokens(x), (height, width))
        return self.norm(tokens), (height // self.proj.ratio, width // self.proj.ratio)


class OverlapPatchEmbed(nn.Module):
    """Overlapping patch embedding of PVT v2: strided, padded convolution, then LayerNorm (section 3.1).

    Args:
        in_channels: Channels of the image or feature map.
        embed_dim: Channels of the tokens.
        kernel_size: Side of a patch in pixels of the image or feature map. Must be odd. The padding is half of it.
        stride: Distance between neighboring patches in pixels of the image or feature map.
    """

    def __init__(self, in_channels: int, embed_dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Embed an image or feature map as tokens.

        Args:
            x: Images or feature map `N×C×H×W`.

        Returns:
            Tokens `N×L×D`, and the size of their grid, `(⌈H / stride⌉, ⌈W / stride⌉)`.
        """
        x = self.proj(x.contiguous(memory_format=torch.channels_last))
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])
