"""The MLPs of the transformer blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.cpu.mlp import fast_mlp, use_fast_mlp
from pvt_det.layers.linear import Linear
from pvt_det.layers.patch import Size, to_map, to_tokens


class Mlp(nn.Module):
    """Two linear layers with GELU between them (PVT v1).

    Args:
        dim: Channels of the tokens.
        ratio: Hidden channels as a multiple of `dim`.

    Attributes:
        halo: Number of rows of the map above and below a token on which its output depends.
    """

    halo = 0

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, dim * ratio)
        self.fc2 = Linear(dim * ratio, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Apply the MLP to each token.

        Args:
            x: Tokens `N×L×C`.
            size: Height and width of the map in tokens. Ignored. It exists so that both MLPs have the same signature.

        Returns:
            Tokens `N×L×C`.
        """
        if use_fast_mlp(self, x):
            return fast_mlp(self, x)
        x = self.fc1(x)
        x = F.gelu(x)
        return self.fc2(x)


class DepthwiseConv(nn.Module):
    """3×3 depthwise convolution of tokens.

    It is a separate module because the published keys are named `dwconv.dwconv`.

    Args:
        dim: Channels of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Convolve the map of tokens.

        Args:
            x: Tokens `N×(H·W)×C`.
            size: Height and width of the map in tokens.

        Returns:
            Tokens `N×(H·W)×C`.
        """
        return to_tokens(self.dwconv(to_map(x, size)))


class ConvMlp(nn.Module):
    """Two linear layers with a 3×3 depthwise convolution and GELU between them (PVT v2 section 3.1).

    Args:
        dim: Channels of the tokens.
        ratio: Hidden channels as a multiple of `dim`.
        relu: Whether to apply a ReLU before the convolution, as in the linear variant.

    Attributes:
        halo: Number of rows of the map above and below a token on which its output depends.
    """

    halo = 1

    def __init__(self, dim: int, ratio: int, relu: bool) -> None:
        super().__init__()
        self.fc1 = Linear(dim, dim * ratio)
        self.relu = relu
        self.dwconv = DepthwiseConv(dim * ratio)
        self.fc2 = Linear(dim * ratio, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Apply the MLP with its convolution.

        Args:
            x: Tokens `N×(H·W)×C`.
            size: Height and width of the map in tokens.

        Returns:
            Tokens `N×(H·W)×C`.
        """
        x = self.fc1(x)
        if self.relu:
            x = F.relu(x)
        x = self.dwconv(x, size)
        x = F.gelu(x)
        return self.fc2(x)
